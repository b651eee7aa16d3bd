"""kserve's REST client, unchanged, against real servers: both protocols, every datatype in every form that it can send itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from testkit.client_environment import run_client
from testkit.client_models import CASES, CLASSES, ROW, SCORES, ClientServers, flipped, make_order, serve_for_clients

CLIENT_REFUSES = {
    ("FP16", "json", "binary"): "Sending FP16 data via JSON is not supported",
    ("FP16", "json", "json"): "Sending FP16 data via JSON is not supported",
    ("BF16", "binary", "binary"): "got unexpected datatype None from numpy array, expected BF16",
    ("BF16", "binary", "json"): "got unexpected datatype None from numpy array, expected BF16",
    ("BF16", "json", "binary"): "invalid datatype in the input",
}
"""What the client refuses by itself, before it asks or after it was answered: by datatype, form sent and form asked for."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientServers]:
    with serve_for_clients(tmp_path_factory.mktemp("models")) as servers:
        yield servers


@pytest.fixture(scope="module")
def report(servers: ClientServers) -> dict[str, Any]:
    return run_client("kserve_rest.py", make_order(servers.http()))


def answer(report: dict[str, Any], name: str) -> Any:
    assert "answer" in report[name], report[name]
    return report[name]["answer"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_datatype_in_every_form(report: dict[str, Any], case: dict[str, Any]) -> None:
    told = report[case["name"]]
    refusal = CLIENT_REFUSES.get((case["datatype"], case["sent"], case["asked"]))
    if refusal:
        assert refusal in told["error"]["message"]
        assert told["error"]["status"] is None, "refused by the client, not by the server"
        return
    assert told == {"answer": flipped(case["datatype"]) | {"came": case["asked"]}}


HEALTHY = [
    "V1: server is live",
    "V1: model is ready",
    "V2: server is live",
    "V2: server is ready",
    "V2: model is ready",
]


@pytest.mark.parametrize("name", HEALTHY)
def test_health(report: dict[str, Any], name: str) -> None:
    assert report[name] == {"answer": True}


def test_another_model_is_not_ready(report: dict[str, Any]) -> None:
    assert report["V2: another model is ready"] == {"answer": False}


@pytest.mark.parametrize("name", ["V1: instances", "V1: named rows", "V1: columns"])
def test_v1_answers_as_torch_does(report: dict[str, Any], servers: ClientServers, name: str) -> None:
    (row,) = answer(report, name)["predictions"]
    assert row == pytest.approx(servers.expected_mlp([ROW])[0], abs=1e-6)


def test_v1_takes_texts(report: dict[str, Any], servers: ClientServers) -> None:
    for told, expected in zip(answer(report, "V1: texts")["predictions"], servers.expected_vectors(), strict=True):
        assert told == pytest.approx(expected, abs=1e-6)


ROWS = [
    "V2: flat list",
    "V2: nested list",
    "V2: array as data",
    "V2: array, binary",
    "V2: array, binary both ways",
    "V2: array, JSON",
    "V2: a dict",
    "V2: with headers",
]


@pytest.mark.parametrize("name", ROWS)
def test_v2_answers_as_torch_does_and_gives_the_id_back(
    report: dict[str, Any], servers: ClientServers, name: str
) -> None:
    told = answer(report, name)
    assert (told["dtype"], told["shape"], told["id"]) == ("float32", [1, 1], "id-7")
    assert told["values"] == pytest.approx(servers.expected_mlp([ROW])[0], abs=1e-6)


def test_v2_gives_back_the_id_that_the_client_makes_up(report: dict[str, Any]) -> None:
    assert len(answer(report, "V2: no id of one's own")["id"]) == len("c61123dc-159e-4ec9-a8e5-9a4394dc1abf")


@pytest.mark.parametrize("name", ["V2: texts, binary", "V2: texts, JSON"])
def test_v2_takes_texts(report: dict[str, Any], servers: ClientServers, name: str) -> None:
    told = answer(report, name)
    assert told["shape"] == [3, 4]
    assert told["values"] == pytest.approx([value for row in servers.expected_vectors() for value in row], abs=1e-6)


@pytest.mark.parametrize("name", ["V2: pictures, binary", "V2: pictures, JSON"])
def test_v2_takes_pictures_and_gives_labels(report: dict[str, Any], name: str) -> None:
    told = answer(report, name)
    assert told["labels"] == {"dtype": "object", "shape": [2, 2], "values": [label for row in CLASSES for label in row]}
    assert told["scores"]["values"] == pytest.approx([score for row in SCORES for score in row], abs=1e-6)


REFUSED = {
    "V1: another model is ready": (404, "no model 'other' here; this server has 'mlp'"),
    "V1: refused: no rows": (400, "instances: must hold at least one row"),
    "V1: refused: model": (404, "no model 'other' here; this server has 'mlp'"),
    "V1: refused: explain": (501, "this server explains no predictions"),
    "V2: refused: shape": (400, "input 'x': shape [1, 9], must be [-1, 10] (-1 is any)"),
    "V2: refused: name": (400, "inputs: missing ['x'], unknown ['z']; this model has ['x']"),
    "V2: refused: model": (404, "no model 'other' here; this server has 'mlp'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_clients_own_exception_with_our_words(report: dict[str, Any], name: str) -> None:
    status, message = REFUSED[name]
    assert "error" in report[name], report[name]
    error = report[name]["error"]
    assert (error["type"], error["status"]) == ("HTTPStatusError", status)
    assert error["message"].startswith(message), "the client puts our sentence first"


def test_no_attempt_is_left_unjudged(report: dict[str, Any]) -> None:
    known = {case["name"] for case in CASES if (case["datatype"], case["sent"], case["asked"]) in CLIENT_REFUSES}
    known |= {"V1: server is ready", *REFUSED}  # the client has no server readiness in V1
    assert {name for name, told in report.items() if "error" in told} == known
