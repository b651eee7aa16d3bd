"""tritonclient over HTTP, unchanged, against real servers: every datatype in every form, every option, every refusal.

The scripts in tests/clients run in an environment of their own and tell what came of each attempt; here it is compared with
what torch says in this process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from testkit.client_environment import run_client
from testkit.client_models import (
    CASES,
    CLASSES,
    DTYPES,
    ROW,
    SCORES,
    ClientServers,
    flipped,
    make_order,
    serve_for_clients,
)

SYNC, AIO = "triton_http.py", "triton_http_aio.py"
LABEL_SHAPE = [2, 2]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientServers]:
    with serve_for_clients(tmp_path_factory.mktemp("models")) as servers:
        yield servers


@pytest.fixture(scope="module")
def reports(servers: ClientServers) -> dict[str, dict[str, Any]]:
    return {script: run_client(script, make_order(servers.http())) for script in (SYNC, AIO)}


@pytest.fixture(params=[SYNC, AIO])
def report(request: pytest.FixtureRequest, reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return reports[request.param]


@pytest.fixture
def sync(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return reports[SYNC]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_datatype_in_every_form(report: dict[str, Any], case: dict[str, Any]) -> None:
    told = report[case["name"]]
    if case["datatype"] == "BF16" and case["sent"] == "json":
        assert "BF16 inputs must be sent as binary data" in told["error"]["message"], "the client refuses by itself"
        return
    assert told == {"answer": flipped(case["datatype"]) | {"came": case["asked"]}}


def test_all_datatypes_at_once_as_the_client_sends_them_by_itself(sync: dict[str, Any]) -> None:
    assert sync["flip, all outputs"] == {"answer": {name: flipped(name) for name in DTYPES}}


@pytest.mark.parametrize("name", ["server is live", "server is ready", "model is ready"])
def test_health(report: dict[str, Any], name: str) -> None:
    assert report[name] == {"answer": True}


def test_readiness_of_versions_and_of_other_models(sync: dict[str, Any]) -> None:
    assert sync["version is ready"] == {"answer": True}
    assert sync["another model is ready"] == {"answer": False}


def test_metadata_and_configuration(report: dict[str, Any]) -> None:
    metadata = report["model metadata"]["answer"]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("mlp", ["1"], "pytorch_state_dict")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
    configuration = report["model configuration"]["answer"]
    assert configuration["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [10]}]
    assert configuration["max_batch_size"] == 32
    index = [{"name": "mlp", "version": "1", "state": "READY", "reason": ""}]
    assert report["repository index"] == {"answer": index}


def test_server_metadata_names_the_extensions(sync: dict[str, Any]) -> None:
    assert "binary_tensor_data" in sync["server metadata"]["answer"]["extensions"]
    assert sync["version metadata"] == sync["model metadata"]


ROWS = [
    "a row",
    "a row, JSON",
    "a row of a version",
    "a row that is not contiguous",
    "parameters",
    "priority and timeout",
    "gzip, binary",
    "gzip, JSON",
    "deflate, binary",
    "deflate, JSON",
    "async_infer",
    "query parameters",
    "a body of one's own",
]
AIO_ROWS = ["a row", "gzip, binary", "gzip, JSON", "deflate, binary", "deflate, JSON"]


@pytest.mark.parametrize(("script", "name"), [*((SYNC, name) for name in ROWS), *((AIO, name) for name in AIO_ROWS)])
def test_a_row_is_answered_as_torch_does(
    reports: dict[str, dict[str, Any]], servers: ClientServers, script: str, name: str
) -> None:
    told = reports[script][name]
    assert "answer" in told, told
    assert (told["answer"]["dtype"], told["answer"]["shape"]) == ("float32", [1, 1])
    assert told["answer"]["values"] == pytest.approx(servers.expected_mlp([ROW])[0], abs=1e-6)


@pytest.mark.parametrize(("name", "rows"), [("more rows than a batch has", 100), ("large JSON", 1000)])
def test_many_rows(sync: dict[str, Any], servers: ClientServers, name: str, rows: int) -> None:
    assert "answer" in sync[name], sync[name]
    assert sync[name]["answer"]["shape"] == [rows, 1]
    assert sync[name]["answer"]["values"] == pytest.approx(servers.expected_mlp([ROW])[0] * rows, abs=1e-6)


def test_requests_at_once_get_each_its_own_answer(reports: dict[str, dict[str, Any]], servers: ClientServers) -> None:
    told = reports[AIO]["many at once"]
    expected = servers.expected_mlp([[value * factor for value in ROW] for factor in range(40)])
    assert [row[0] for row in told["answer"]] == pytest.approx([row[0] for row in expected], abs=1e-5)


def test_the_request_id_comes_back(sync: dict[str, Any]) -> None:
    assert sync["request id"] == {"answer": "id-7"}


@pytest.mark.parametrize("name", ["NaN as bytes", "NaN as bytes, JSON back"])
def test_what_json_cannot_say_travels_as_bytes_and_comes_back_as_null(sync: dict[str, Any], name: str) -> None:
    assert math.isnan(sync[name]["answer"]["values"][0])


@pytest.mark.parametrize(("script", "name"), [(SYNC, "texts, binary"), (SYNC, "texts, JSON"), (AIO, "texts")])
def test_texts_go_in_as_bytes(
    reports: dict[str, dict[str, Any]], servers: ClientServers, script: str, name: str
) -> None:
    told = reports[script][name]
    assert "answer" in told, told
    assert told["answer"]["shape"] == [3, 4]
    expected = [value for vector in servers.expected_vectors() for value in vector]
    assert told["answer"]["values"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["pictures, binary", "pictures, labels as JSON", "pictures, base64 in JSON"])
def test_pictures_go_in_as_bytes_and_labels_come_out_as_bytes(sync: dict[str, Any], name: str) -> None:
    told = sync[name]
    assert "answer" in told, told
    labels, scores = told["answer"]["labels"], told["answer"]["scores"]
    assert labels == {"dtype": "object", "shape": LABEL_SHAPE, "values": [label for row in CLASSES for label in row]}
    assert scores["values"] == pytest.approx([score for row in SCORES for score in row], abs=1e-6)


REFUSED = {
    "refused: shape": ("400", "input 'x': shape [1, 9], must be [-1, 10] (-1 is any)"),
    "refused: datatype": ("400", "input 'x': datatype 'FP64', must be FP32"),
    "refused: name": ("400", "inputs: missing ['x'], unknown ['z']; this model has ['x']"),
    "refused: NaN in JSON": ("400", "JSON has no NaN and no Infinity"),
    "refused: output": ("400", "outputs: 'z' is not an output of this model, which has ['y']"),
    "refused: classification": ("400", "output 'y': classification is not offered (GET /v2 names the extensions)"),
    "refused: sequence": ("400", "sequence_id asks for state between requests, which this server does not keep"),
    "refused: model": ("404", "no model 'other' here; this server has 'mlp'"),
    "refused: version": ("404", "model 'mlp' has no version '2'; it has '1'"),
    "refused: timeout": ("504", "no answer within"),
    "refused: metadata of another model": ("404", "no model 'other' here; this server has 'mlp'"),
    "refused: statistics": ("501", "statistics are not kept in this form; see GET /metrics"),
    "refused: load": ("501", "models are not loaded by requests"),
    "refused: unload": ("501", "models are not loaded by requests"),
    "refused: shared memory": ("404", "no route /v2/systemsharedmemory/region/a/register; see GET /v2"),
    "refused: trace settings": ("404", "no route /v2/trace/setting; see GET /v2"),
}
AIO_REFUSED = ["refused: shape", "refused: model", "refused: statistics"]


@pytest.mark.parametrize(
    ("script", "name"), [*((SYNC, name) for name in REFUSED), *((AIO, name) for name in AIO_REFUSED)]
)
def test_refusals_are_the_clients_own_exception_with_our_words(
    reports: dict[str, dict[str, Any]], script: str, name: str
) -> None:
    status, message = REFUSED[name]
    told = reports[script][name]
    assert "error" in told, told
    assert (told["error"]["type"], told["error"]["status"]) == ("InferenceServerException", status)
    assert message in told["error"]["message"]


def test_no_attempt_is_left_unjudged(reports: dict[str, dict[str, Any]]) -> None:
    """An attempt that nobody looks at proves nothing: what answers is wanted, what is refused is listed above."""
    for report in reports.values():
        unexpected = {
            name: told for name, told in report.items() if ("error" in told) != (name in REFUSED or is_bf16_json(name))
        }
        assert not unexpected


def is_bf16_json(name: str) -> bool:
    return name.startswith("BF16 sent as json")
