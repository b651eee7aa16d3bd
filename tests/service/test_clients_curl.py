"""Command lines as TorchServe's users write them, run by bash with the real curl, against an image, a text and a tensor model.

TorchServe's pages show three shapes: a file as the body (-T), a form with the field `data` (-F), and a document (-d); and GET on
what is served. The lines here have those shapes, with our models' names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from testkit.client_models import PICTURES, ROW, TEXTS, ClientServers, make_picture, serve_for_clients

PAGE_ADDRESS = "http://127.0.0.1:8080/"
"""As in the manuals; the port is that of the model that the line names."""

KITTEN = {"red": pytest.approx(200 / 255, abs=0.02), "green": pytest.approx(100 / 255, abs=0.02)}
"""What the picture is made of; JPEG keeps it nearly."""
DOG = {"bläulich": pytest.approx(250 / 255, abs=0.02), "green": pytest.approx(50 / 255, abs=0.02)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientServers]:
    with serve_for_clients(tmp_path_factory.mktemp("models")) as servers:
        yield servers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lines post."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "kitten.jpg").write_bytes(make_picture((200, 100, 0), "JPEG"))
    (folder / "dog.jpg").write_bytes(make_picture((0, 50, 250), "JPEG"))
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "large.png")
    (folder / "sample_text.txt").write_text(TEXTS[1] + "\n")
    (folder / "rows.json").write_text(json.dumps([ROW, ROW]))
    (folder / "instances.json").write_text(json.dumps({"instances": [ROW]}, indent=1))
    (folder / "texts.json").write_text(json.dumps({"instances": [{"data": text} for text in TEXTS]}))
    (folder / "pictures.json").write_text(json.dumps({"instances": [{"data": as_base64(each)} for each in PICTURES]}))
    return folder


def as_base64(content: bytes) -> str:
    return subprocess.run(["base64", "-w0"], input=content, capture_output=True, check=True).stdout.decode()


def curl(servers: ClientServers, folder: Path, line: str) -> Any:
    """Run a line; its answer, parsed where it is JSON."""
    (name,) = set(re.findall(r"\b(?:mlp|text|colour)\b", line)) or {"mlp"}
    address = f"http://{servers.http()[name]}/"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line.replace("curl ", "curl -sS ").replace(PAGE_ADDRESS, address)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},  # no ~/.curlrc of the machine's
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout + done.stderr


IMAGE_LINES = [
    "curl http://127.0.0.1:8080/predictions/colour -T kitten.jpg",
    'curl http://127.0.0.1:8080/predictions/colour -F "data=@kitten.jpg"',
    "curl http://127.0.0.1:8080/predictions/colour/1 -T kitten.jpg",
    'curl http://127.0.0.1:8080/predictions/colour/1 -F "data=@kitten.jpg"',
    "curl -X POST http://127.0.0.1:8080/predictions/colour -T kitten.jpg",
    "curl -X POST http://127.0.0.1:8080/predictions/colour --data-binary @kitten.jpg",
    'curl http://127.0.0.1:8080/predictions/colour -H "Authorization: Bearer a-key" -T kitten.jpg',
    "curl -X POST http://127.0.0.1:8080/invocations?model_name=colour -T kitten.jpg",
    "cat kitten.jpg | curl -X POST http://127.0.0.1:8080/predictions/colour -T -",
]


@pytest.mark.parametrize("line", IMAGE_LINES)
def test_a_picture_gets_labels_with_their_scores(servers: ClientServers, files: Path, line: str) -> None:
    assert curl(servers, files, line) == KITTEN


def test_several_pictures_in_one_form_get_one_answer_each(servers: ClientServers, files: Path) -> None:
    line = "curl http://127.0.0.1:8080/predictions/colour -F 'data=@kitten.jpg' -F 'data=@dog.jpg'"
    assert curl(servers, files, line) == [KITTEN, DOG]


def test_a_large_file_for_which_curl_waits_to_be_told_to_continue(servers: ClientServers, files: Path) -> None:
    assert (files / "large.png").stat().st_size > 2 << 20
    line = "curl -v http://127.0.0.1:8080/predictions/colour -T large.png 2>log && grep -q '100-continue' log"
    assert list(curl(servers, files, line).values()) == pytest.approx([0.5, 0.5], abs=0.05)


TEXT_LINES = [
    "curl http://127.0.0.1:8080/predictions/text -T sample_text.txt",
    "curl -X POST http://127.0.0.1:8080/predictions/text -T ./sample_text.txt",
    'curl -X POST http://127.0.0.1:8080/predictions/text -F "data=@sample_text.txt"',
    'curl -X POST http://127.0.0.1:8080/predictions/text -F "data=Ein Hünd"',
    'curl -X POST http://127.0.0.1:8080/predictions/text -d "Ein Hünd"',
    'curl -X POST http://127.0.0.1:8080/predictions/text -H "Content-Type: text/plain" -d @sample_text.txt',
]


@pytest.mark.parametrize("line", TEXT_LINES)
def test_a_text_gets_its_vector(servers: ClientServers, files: Path, line: str) -> None:
    assert curl(servers, files, line) == pytest.approx(servers.expected_vectors()[1], abs=1e-6)


TENSOR_LINES = [
    ("curl http://127.0.0.1:8080/predictions/mlp -T rows.json", 2),
    ('curl http://127.0.0.1:8080/predictions/mlp -F "data=@rows.json"', 2),
    ('curl -X POST http://127.0.0.1:8080/predictions/mlp -H "Content-Type: application/json" -d @rows.json', 2),
    (f"curl -X POST http://127.0.0.1:8080/predictions/mlp -d '{json.dumps([ROW])}'", 1),
    ("curl -X POST http://127.0.0.1:8080/predictions/mlp -d @instances.json", 1),
    ('curl http://127.0.0.1:8080/predictions/mlp/1 -F "x=@rows.json"', 2),
    ("gzip -c rows.json | curl http://127.0.0.1:8080/predictions/mlp -H 'Content-Encoding: gzip' --data-binary @-", 2),
]


@pytest.mark.parametrize(("line", "rows"), TENSOR_LINES, ids=[line for line, _ in TENSOR_LINES])
def test_rows_of_numbers_get_the_modules_own_answer(servers: ClientServers, files: Path, line: str, rows: int) -> None:
    told = curl(servers, files, line)
    assert [value for row in told for value in row] == pytest.approx(servers.expected_mlp([ROW])[0] * rows, abs=1e-6)


V1_LINES = [
    'curl -H "Content-Type: application/json" --data @instances.json http://127.0.0.1:8080/v1/models/mlp:predict',
    "curl -v http://127.0.0.1:8080/v1/models/mlp:predict -d @instances.json",
    "curl -X POST http://127.0.0.1:8080/v1/models/mlp:predict -T instances.json",
    'curl -H "Host: mlp.default.example.com" http://127.0.0.1:8080/v1/models/mlp:predict -d @instances.json',
]


@pytest.mark.parametrize("line", V1_LINES)
def test_predict_takes_the_document(servers: ClientServers, files: Path, line: str) -> None:
    (row,) = curl(servers, files, line)["predictions"]
    assert row == pytest.approx(servers.expected_mlp([ROW])[0], abs=1e-6)


def test_rows_whose_only_value_is_called_data(servers: ClientServers, files: Path) -> None:
    """As TorchServe's pages on KServe have them, for pictures and for texts."""
    told = curl(servers, files, "curl http://127.0.0.1:8080/v1/models/colour:predict -d @pictures.json")
    assert [row["labels"] for row in told["predictions"]] == [["red", "green"], ["bläulich", "green"]]
    told = curl(servers, files, "curl http://127.0.0.1:8080/v1/models/text:predict -d @texts.json")
    for row, expected in zip(told["predictions"], servers.expected_vectors(), strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_ping(servers: ClientServers, files: Path) -> None:
    assert curl(servers, files, "curl http://127.0.0.1:8080/ping") == {"status": "Healthy"}


def test_the_api_description(servers: ClientServers, files: Path) -> None:
    told = curl(servers, files, "curl -X OPTIONS http://127.0.0.1:8080/")
    assert "/predictions/mlp" in told["paths"]
    assert told["openapi"].startswith("3.")


@pytest.mark.parametrize("path", ["models/mlp", "models/mlp/1", "models/mlp/all"])
def test_describe(servers: ClientServers, files: Path, path: str) -> None:
    (told,) = curl(servers, files, f"curl {PAGE_ADDRESS}{path}")
    assert (told["modelName"], told["modelVersion"], told["engine"], told["runtime"]) == ("mlp", "1", "Torch", "python")
    assert told["minWorkers"] == told["maxWorkers"] == len(told["workers"])
    assert {worker["status"] for worker in told["workers"]} == {"READY"}


def test_the_list_of_models(servers: ClientServers, files: Path) -> None:
    told = curl(servers, files, 'curl "http://127.0.0.1:8080/models?limit=5"')
    assert [model["modelName"] for model in told["models"]] == ["mlp"]
    assert curl(servers, files, "curl http://127.0.0.1:8080/v1/models/mlp") == {"name": "mlp", "ready": True}


REFUSED = [
    ("curl http://127.0.0.1:8080/predictions/other -T kitten.jpg", 404, "ModelNotFoundException", "no model 'other'"),
    ("curl http://127.0.0.1:8080/predictions/mlp -T kitten.jpg", 400, "BadRequestException", "a JPEG image"),
    ("curl http://127.0.0.1:8080/predictions/colour -T rows.json", 400, "BadRequestException", "image"),
    ("curl http://127.0.0.1:8080/explanations/mlp -T rows.json", 501, "NotImplementedException", "explains no"),
    ("curl -X DELETE http://127.0.0.1:8080/models/mlp", 405, "MethodNotAllowedException", "DELETE is not allowed"),
    ('curl -X PUT "http://127.0.0.1:8080/models/mlp?min_worker=3"', 405, "MethodNotAllowedException", "PUT is not"),
    ('curl -X POST "http://127.0.0.1:8080/models?url=a.mar"', 405, "MethodNotAllowedException", "POST is not"),
    (
        "curl http://127.0.0.1:8080/predictions/mlp -F data=@rows.json -F data=@rows.json",
        400,
        "BadRequestException",
        "field 'data'",
    ),
]


@pytest.mark.parametrize(("line", "status", "kind", "words"), REFUSED, ids=[line for line, *_ in REFUSED])
def test_refusals_have_torchserves_form(
    servers: ClientServers, files: Path, line: str, status: int, kind: str, words: str
) -> None:
    told = curl(servers, files, line)
    assert (told["code"], told["type"]) == (status, kind)
    assert words in told["message"]
    assert curl(servers, files, f"{line} -o answer -w '%{{http_code}}'").strip() == str(status)


def test_every_answer_names_its_request(servers: ClientServers, files: Path) -> None:
    told = curl(servers, files, "curl -i http://127.0.0.1:8080/predictions/mlp -T rows.json")
    assert re.search(r"^x-request-id: \S+", told, re.IGNORECASE | re.MULTILINE)
