"""Tensor models: every attack of the tables is refused as it must be, whichever way it comes, and harms nobody."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hostile.asking import failures_inside, refuse_both_ways, table
from hostile.attack import ROW, Attack, v2
from hostile.attacks import arrayfiles, compression, datatypes, routes, torchserve, v1, v2_binary, v2_json
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from testkit.tiny_media import serve_echo
from torchmodel_runtime.config import Serving

FOR_ONE_INPUT = (v2_json, v2_binary, v1, torchserve, arrayfiles, compression, routes)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    with RuntimeProcess(linear_config(folder, serving=Serving(processes=1, workers=1, threads=1))) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(serve_echo(tmp_path_factory.mktemp("echo"))) as process:
        yield process.wait_ready()


def answers(server: RuntimeProcess) -> list[Any]:
    """What good clients of each dialect are told."""
    return [
        server.post("/v2/models/linear/infer", v2()),
        server.post("/v1/models/linear:predict", {"instances": [ROW, ROW]}),
        server.post("/predictions/linear", [ROW]),
        server.post("/v2/models/linear/infer", arrayfiles.npy(arrayfiles.X), arrayfiles.NPY),
    ]


@pytest.fixture(scope="module")
def good(server: RuntimeProcess) -> list[Any]:
    told = answers(server)
    assert [status for status, _ in told] == [200] * 4
    return told


@table(itertools.chain.from_iterable(attacks.ATTACKS for attacks in FOR_ONE_INPUT))
def test_a_bad_request_is_told_what_is_wrong_and_harms_nobody(
    server: RuntimeProcess, good: list[Any], attack: Attack
) -> None:
    refuse_both_ways(server, attack)
    assert answers(server) == good


@table(datatypes.ATTACKS)
def test_bad_tensors_of_many_datatypes(echo: RuntimeProcess, attack: Attack) -> None:
    refuse_both_ways(echo, attack)
    status, answer = echo.post("/v2/models/echo/infer", datatypes.document())
    assert status == 200
    assert {output["name"]: output["data"] for output in answer["outputs"]} == datatypes.ROW


UNUSUAL = {
    "a name of a field comes twice, the last one counts": b'{"inputs": [], ' + v2()[1:],
    "blanks are everywhere": b" \r\n\t " + v2().replace(b",", b" ,\n\t ").replace(b"[", b" [ ") + b" \n" * 50,
    "names are written in escapes": v2().replace(b'"x"', b'"\\u0078"'),
    "numbers have exponents": v2(data=[0]).replace(b"[0]", b"[5e-1,-1E0,0.2e1,0,15e-1,-2.5e-1,3,1,-200e-2,75E-2]"),
    "numbers have a thousand digits": v2(data=[0]).replace(
        b"[0]", b"[0.5" + b"0" * 1000 + b",-1,2,0,1.5,-0.25,3,1,-2,0.75]"
    ),
    "the id is as strange as text can be": v2(more={"id": "\0\u2028\U0001f415</script>\ud83d\ude00" * 20}),
    "all that may be asked for is asked for": v2(
        parameters={"a": [{"b": None}]},
        more={
            "id": "1",
            "outputs": [{"name": "y", "parameters": {"binary_data": False, "classification": 0}}],
            "parameters": {
                "binary_data_output": False,
                "timeout": 0,
                "priority": -1,
                "sequence_id": 0,
                "more": [1, {}],
            },
        },
    ),
}


@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_unusual_and_right_is_answered(server: RuntimeProcess, good: list[Any], body: bytes) -> None:
    status, answer = server.post("/v2/models/linear/infer", body)
    assert status == 200, answer
    assert answer["outputs"] == good[0][1]["outputs"]


def test_no_attack_was_a_failure_inside(server: RuntimeProcess, echo: RuntimeProcess) -> None:
    assert failures_inside(server) + failures_inside(echo) == []
