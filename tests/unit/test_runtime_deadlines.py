"""How long a request may take: wishes in headers and parameters, and what is not one."""

from __future__ import annotations

from typing import Any

import pytest
from torchmodel_runtime.deadlines import choose_timeout_s
from torchmodel_runtime.errors import RequestError

OURS = "X-Request-Timeout-Milliseconds"
ENVOYS = "x-envoy-expected-rq-timeout-ms"


@pytest.mark.parametrize(
    ("headers", "parameters", "timeout_s"),
    [
        ({}, {}, 30),
        ({OURS: "1500"}, {}, 1.5),
        ({OURS: "60000"}, {}, 30),
        ({ENVOYS: "250"}, {}, 0.25),
        ({OURS: "1500", ENVOYS: "2000"}, {}, 1.5),
        ({}, {"timeout": 2_000_000}, 2),
        ({}, {"timeout": "2000000"}, 2),
        ({}, {"timeout": 0}, 30),
        ({OURS: "1500"}, {"timeout": 1_000_000}, 1),
        ({}, {"priority": 1}, 30),
    ],
    ids=[
        "no wish is the limit",
        "our header",
        "no more than the limit",
        "Envoy's header",
        "the shorter header",
        "Triton's parameter in microseconds",
        "the parameter as a string",
        "zero is Triton's word for none",
        "the parameter is shorter than the header",
        "other parameters are none",
    ],
)
def test_the_shortest_wish_holds(headers: dict[str, str], parameters: dict[str, Any], timeout_s: float) -> None:
    assert choose_timeout_s(headers, parameters, 30) == timeout_s


@pytest.mark.parametrize("header", [OURS, ENVOYS])
@pytest.mark.parametrize(
    "value", ["", "0", "-1", "1.5", "1s", "1e3", "\u0663", "9" * 5000], ids=lambda value: repr(value[:9])
)
def test_a_header_that_cannot_be_read_is_named(header: str, value: str) -> None:
    with pytest.raises(RequestError, match=header) as caught:
        choose_timeout_s({header: value}, {}, 30)
    assert caught.value.status == 400
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, "1s", "", "\u0663", [1], {"a": 1}, 1 << 63, 10**5000, "9" * 5000],
    ids=lambda value: str(value)[:9] if isinstance(value, str) else type(value).__name__,
)
def test_a_parameter_that_cannot_be_read_is_named(value: object) -> None:
    with pytest.raises(RequestError, match=r"parameters\.timeout") as caught:
        choose_timeout_s({}, {"timeout": value}, 30)
    assert caught.value.status == 400
    assert len(caught.value.message) < 150
