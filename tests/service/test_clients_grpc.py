"""tritonclient.grpc (blocking and aio) and kserve's gRPC client, unchanged, against real servers with serving.grpc.enabled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from testkit.client_environment import run_client
from testkit.client_models import (
    CLASSES,
    DTYPES,
    ROW,
    SCORES,
    TYPED,
    ClientServers,
    flipped,
    make_order,
    serve_for_clients,
)

TRITON, KSERVE = "triton_grpc.py", "kserve_grpc.py"

Reports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientServers]:
    with serve_for_clients(tmp_path_factory.mktemp("models"), grpc=True) as servers:
        yield servers


@pytest.fixture(scope="module")
def reports(servers: ClientServers) -> Reports:
    return {script: run_client(script, make_order(servers.grpc())) for script in (TRITON, KSERVE)}


def answer(reports: Reports, script: str, name: str) -> Any:
    told = reports[script][name]
    assert "answer" in told, told
    return told["answer"]


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("prefix", ["", "aio: "], ids=["blocking", "aio"])
def test_tritonclient_sends_and_reads_every_datatype(reports: Reports, prefix: str, datatype: str) -> None:
    expected = flipped(datatype) | {"datatype": datatype, "asked": datatype}
    assert answer(reports, TRITON, prefix + datatype) == expected


@pytest.mark.parametrize("datatype", DTYPES)
def test_kserves_client_sends_and_reads_every_datatype_as_bytes(reports: Reports, datatype: str) -> None:
    if datatype == "BF16":
        error = reports[KSERVE]["BF16 as bytes"]["error"]
        assert (error["type"], error["message"], error["status"]) == ("InvalidInput", "invalid content type", None), (
            "the client itself has no BF16 in its answers"
        )
        return
    assert answer(reports, KSERVE, f"{datatype} as bytes") == flipped(datatype)


@pytest.mark.parametrize("datatype", TYPED)
def test_kserves_client_sends_and_reads_every_datatype_as_a_list(reports: Reports, datatype: str) -> None:
    assert answer(reports, KSERVE, f"{datatype} as a list") == flipped(datatype)


HEALTH = ["server is live", "server is ready", "model is ready"]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        *((TRITON, name) for name in [*HEALTH, "version is ready"]),
        *((TRITON, f"aio: {name}") for name in HEALTH),
        *((KSERVE, name) for name in HEALTH),
    ],
)
def test_health(reports: Reports, script: str, name: str) -> None:
    assert answer(reports, script, name) is True


def test_metadata_and_configuration(reports: Reports) -> None:
    assert "binary_tensor_data" in answer(reports, TRITON, "server metadata")["extensions"]
    metadata = answer(reports, TRITON, "model metadata")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("mlp", ["1"], "pytorch_state_dict")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "10"]}]
    configuration = answer(reports, TRITON, "model configuration")["config"]
    assert configuration["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["10"]}]
    assert configuration["max_batch_size"] == 32
    index = answer(reports, TRITON, "repository index")
    assert index == {"models": [{"name": "mlp", "version": "1", "state": "READY"}]}


TRITON_ROWS = [
    "a row",
    "a row of a version",
    "parameters",
    "priority and timeout",
    "client timeout",
    "headers",
    "gzip",
    "deflate",
    "async_infer",
    "aio: a row",
    "aio: gzip",
]
KSERVE_ROWS = ["array", "array as data", "list", "parameters", "a version"]


@pytest.mark.parametrize(
    ("script", "name"), [*((TRITON, name) for name in TRITON_ROWS), *((KSERVE, name) for name in KSERVE_ROWS)]
)
def test_a_row_is_answered_as_torch_does(reports: Reports, servers: ClientServers, script: str, name: str) -> None:
    told = answer(reports, script, name)
    assert (told["dtype"], told["shape"]) == ("float32", [1, 1])
    assert told["values"] == pytest.approx(servers.expected_mlp([ROW])[0], abs=1e-6)
    assert script == TRITON or told["id"] == "id-7"


def test_more_rows_than_a_batch_has(reports: Reports, servers: ClientServers) -> None:
    told = answer(reports, TRITON, "more rows than a batch has")
    assert told["shape"] == [100, 1]
    assert told["values"] == pytest.approx(servers.expected_mlp([ROW])[0] * 100, abs=1e-6)


def test_the_request_id_comes_back(reports: Reports) -> None:
    assert answer(reports, TRITON, "request id") == "id-7"


@pytest.mark.parametrize(("script", "name"), [(TRITON, "texts"), (KSERVE, "texts, array"), (KSERVE, "texts, list")])
def test_texts_go_in_as_bytes(reports: Reports, servers: ClientServers, script: str, name: str) -> None:
    told = answer(reports, script, name)
    assert told["shape"] == [3, 4]
    assert told["values"] == pytest.approx([value for row in servers.expected_vectors() for value in row], abs=1e-6)


@pytest.mark.parametrize(
    ("script", "name"), [(TRITON, "pictures"), (KSERVE, "pictures, array"), (KSERVE, "pictures, list")]
)
def test_pictures_go_in_as_bytes_and_labels_come_out_as_bytes(reports: Reports, script: str, name: str) -> None:
    told = answer(reports, script, name)
    assert told["labels"] == {"dtype": "object", "shape": [2, 2], "values": [label for row in CLASSES for label in row]}
    assert told["scores"]["values"] == pytest.approx([score for row in SCORES for score in row], abs=1e-6)


STREAMS = "requests are not streamed; call ModelInfer for each"
REFUSED = {
    "refused: shape": ("INVALID_ARGUMENT", "input 'x': shape [1, 9], must be [-1, 10] (-1 is any)"),
    "refused: datatype": ("INVALID_ARGUMENT", "input 'x': datatype 'FP64', must be FP32"),
    "refused: name": ("INVALID_ARGUMENT", "inputs: missing ['x'], unknown ['z']; this model has ['x']"),
    "refused: output": ("INVALID_ARGUMENT", "outputs: 'z' is not an output of this model, which has ['y']"),
    "refused: classification": ("INVALID_ARGUMENT", "output 'y': classification is not offered"),
    "refused: sequence": ("INVALID_ARGUMENT", "sequence_id asks for state between requests"),
    "refused: model": ("NOT_FOUND", "no model 'other' here; this server has 'mlp'"),
    "refused: version": ("NOT_FOUND", "model 'mlp' has no version '2'; it has '1'"),
    "refused: timeout": ("DEADLINE_EXCEEDED", "no answer within"),
    "refused: another model is ready": ("NOT_FOUND", "no model 'other' here; this server has 'mlp'"),
    "refused: statistics": ("UNIMPLEMENTED", "statistics are not kept in this form; see GET /metrics"),
    "refused: load": ("UNIMPLEMENTED", "models are not loaded by requests"),
    "refused: shared memory": ("UNIMPLEMENTED", "no shared memory is read; send tensors in the request"),
    "refused: trace settings": ("UNIMPLEMENTED", "set by the TorchModel resource"),
    "refused: stream": ("UNIMPLEMENTED", STREAMS),
}
REFUSALS = {
    **{(TRITON, name): expected for name, expected in REFUSED.items()},
    **{(TRITON, f"aio: {name}"): REFUSED[name] for name in ("refused: shape", "refused: model", "refused: stream")},
    **{
        (KSERVE, name): REFUSED[name]
        for name in ("refused: shape", "refused: name", "refused: model", "refused: another model is ready")
    },
}


@pytest.mark.parametrize(("script", "name"), REFUSALS)
def test_refusals_are_the_clients_own_exception_with_our_words(reports: Reports, script: str, name: str) -> None:
    code, message = REFUSALS[script, name]
    assert "error" in reports[script][name], reports[script][name]
    error = reports[script][name]["error"]
    assert error["type"] in ("InferenceServerException", "AioRpcError")
    assert error["status"].removeprefix("StatusCode.") == code
    assert message in error["message"]


def test_no_attempt_is_left_unjudged(reports: Reports) -> None:
    failed = {(script, name) for script, report in reports.items() for name, told in report.items() if "error" in told}
    assert failed == {*REFUSALS, (KSERVE, "BF16 as bytes")}
