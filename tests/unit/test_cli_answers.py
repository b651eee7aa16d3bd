"""What `torchmodel predict` sends and how answers read: pure functions, without a server."""

from pathlib import Path
from typing import Any

import pytest
from torchmodel_cli.answers import format_answer
from torchmodel_cli.bodies import BadUse, make_body
from torchmodel_cli.child import loud_text
from torchmodel_cli.client import parse_endpoint
from torchmodel_cli.display import format_download, format_failure, format_ledger, format_size
from torchmodel_runtime.config import (
    BatchingReport,
    BatchProof,
    ColdStart,
    Failure,
    ModelReport,
    ParallelismReport,
)

TENSOR: list[dict[str, Any]] = [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}]
IMAGE: list[dict[str, Any]] = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
AUDIO: list[dict[str, Any]] = [{"name": "audio", "datatype": "BYTES", "shape": [-1]}]
TEXT: list[dict[str, Any]] = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(
            {"palace": 0.5, "castle": 0.25},
            "palace    0.5000  ███████████████\ncastle    0.2500  ████████",
            id="labels with scores",
        ),
        pytest.param(
            {"predictions": [{"labels": ["a"], "scores": [1.0]}]},
            "a    1.0000  " + "█" * 30,
            id="labels of the V1 dialect",
        ),
        pytest.param(
            {"segments": [{"start": 0.5, "end": 1.5}], "duration_seconds": 2.0},
            "1 segment of speech, 1.00 s in 2.00 s\n     0.500 s  to     1.500 s",
            id="a stretch of speech",
        ),
        pytest.param({"segments": []}, "0 segments of speech, 0.00 s", id="no speech"),
        pytest.param([0.1] * 384, "[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, …]  384 values", id="a long vector"),
        pytest.param([1.5, 2], "[1.5, 2]", id="a short vector"),
        pytest.param([[1.5], [2.5]], "row 0: [1.5]\nrow 1: [2.5]", id="rows"),
        pytest.param(
            {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}]},
            "y  FP32 [2, 1]\n  [1]\n  [2]",
            id="tensors of the V2 protocol",
        ),
        pytest.param(
            {"outputs": [{"name": "y", "datatype": "FP32", "shape": [9], "data": [0.0] * 9}]},
            "y  FP32 [9]\n" + "  [0]\n" * 6 + "  …  9 rows",
            id="many rows are cut",
        ),
        pytest.param({"predictions": [3]}, "3", id="a number"),
        pytest.param({"predictions": [None]}, "null", id="nothing"),
        pytest.param(
            {"predictions": [[None, 0.5]]}, "[null, 0.5]", id="a vector with a number that JSON does not have"
        ),
        pytest.param({"y": [1.0], "z": [2.0]}, "y: [1]\nz: [2]", id="several outputs by name"),
    ],
)
def test_answers_read_well(answer: object, expected: str) -> None:
    assert format_answer(answer) == expected


@pytest.mark.parametrize(
    ("given", "inputs", "route", "content_type"),
    [
        ('{"instances": [[1]]}', TENSOR, "/v1/models/{name}:predict", "application/json"),
        (
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}',
            TENSOR,
            "/v2/models/{name}/infer",
            "application/json",
        ),
        ('{"inputs": {"x": [1]}}', TENSOR, "/v1/models/{name}:predict", "application/json"),
        ("[[1, 2]]", TENSOR, "/predictions/{name}", "application/json"),
        ("A sentence.", TEXT, "/predictions/{name}", "text/plain"),
        ("photo.jpg", IMAGE, "/predictions/{name}", "image/jpeg"),
        ("photo", IMAGE, "/predictions/{name}", "image/*"),
        ("speech.wav", AUDIO, "/predictions/{name}", "audio/x-wav"),
        ("notes.txt", TEXT, "/predictions/{name}", "text/plain"),
        ("request.json", IMAGE, "/predictions/{name}", "application/json"),
    ],
)
def test_the_body_follows_what_was_given(
    given: str,
    inputs: list[dict[str, Any]],
    route: str,
    content_type: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "photo", "speech.wav", "notes.txt"):
        Path(name).write_bytes(b"bytes")
    Path("request.json").write_text("[1]")
    body = make_body(given, inputs)
    assert body.route == route
    assert body.content_type in (content_type, "audio/wav")


@pytest.mark.parametrize(
    ("given", "inputs", "message"),
    [
        ("none.jpg", IMAGE, "'none.jpg' is neither a file nor JSON; this model takes image, for example photo.jpg"),
        ("none.jpg", TENSOR, "'none.jpg' is neither a file nor JSON"),
        ("{broken", TENSOR, "the argument is not JSON: "),
        ("photo.jpg", TENSOR, "photo.jpg: this model takes tensors; give a .json file or JSON"),
        ("photo.jpg", AUDIO, "photo.jpg is image/jpeg, but this model takes audio"),
        ("empty.jpg", IMAGE, "empty.jpg is empty"),
    ],
)
def test_what_cannot_be_sent_is_said(
    given: str, inputs: list[dict[str, Any]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"bytes")
    Path("empty.jpg").write_bytes(b"")
    with pytest.raises(BadUse) as caught:
        make_body(given, inputs)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("url", "base", "name"),
    [
        ("http://h:1", "http://h:1", None),
        ("http://h:1/", "http://h:1", None),
        ("http://h:1/v2/models/image", "http://h:1", "image"),
        ("http://h:1/v2/models/image/infer", "http://h:1", "image"),
        ("http://h/v1/models/image:predict", "http://h", "image"),
        ("https://h/prefix/predictions/image", "https://h/prefix", "image"),
    ],
)
def test_any_url_of_a_model_says_where_it_is(url: str, base: str, name: str | None) -> None:
    assert parse_endpoint(url) == (base, name)


@pytest.mark.parametrize("text", ["ftp://h", "h:8080", ""])
def test_other_texts_are_no_url(text: str) -> None:
    with pytest.raises(BadUse, match="is not a URL"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (18_900_000, "18.0 MiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_a_download_shows_how_far_it_is() -> None:
    half = format_download(512, 1024, 5.0)
    assert half == "fetching [############------------]  50%  512 B of 1.0 KiB, 5.0 MB/s"
    assert format_download(512, None, 0) == "fetching 512 B"


def test_a_failure_reads_as_cause_and_next_step() -> None:
    failure = Failure(reason="ChecksumMismatch", message="expected a, found b", next_step="Find out who changed it.")
    assert format_failure(failure) == "ChecksumMismatch: expected a, found b\nnext step: Find out who changed it."


def test_what_is_loaded_is_said_with_the_proof_and_the_plan() -> None:
    report = ModelReport(
        sha256="5793" * 16,
        uri="file:///model.pth",
        size_bytes=1536,
        format="state-dict",
        load_safety="weights-only",
        device="cpu",
        cold_start=ColdStart(fetch_seconds=0.01, import_seconds=1, load_seconds=0.02, warm_up_seconds=0.5),
        batching=BatchingReport(
            enabled=True, max_size=32, reason="", proofs=[BatchProof(rows=32, max_difference=2.4e-7, tolerance=1e-5)]
        ),
        parallelism=ParallelismReport(processes=2, reason="a row takes 3 µs"),
    )
    assert format_ledger(report) == [
        "checkpoint  sha256:579357935793, 1.5 KiB, state-dict",
        "safety      weights-only",
        "device      cpu, 2 processes x 1 worker x 1 thread: a row takes 3 µs",
        "batching    up to 32 rows; worst difference 2.4e-07 of 1e-05 allowed",
        "start       fetch 0.01 s, import 1.00 s, load 0.02 s, warm-up 0.50 s",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"level": "warning", "message": "slow"}', "warning: slow"),
        ('{"level": "info", "message": "ready"}', ""),
        ("Traceback (most recent call last):", ""),
        ("[1]", ""),
    ],
)
def test_only_warnings_of_the_server_are_loud(line: str, text: str) -> None:
    assert loud_text(line) == text
