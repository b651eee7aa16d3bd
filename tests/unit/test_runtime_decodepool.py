"""The process that decodes large bodies: the same answers as on the spot, and it comes back when it dies."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from test_runtime_codec import NUMERIC, plan, signature
from torchmodel_runtime import codec
from torchmodel_runtime.codec import Plan
from torchmodel_runtime.decodepool import DecodePool
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Call

ALL = signature(*((datatype, datatype, [-1, 2]) for datatype in NUMERIC), ("text", "BYTES", [-1]))
ROWS = signature(("x", "FP32", [-1, 10]))


def v1(document: object, **headers: str) -> Call:
    return Call("v1", "m", json.dumps(document).encode(), headers, "application/json")


def npy_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Pools:
    """Makes pools and closes them."""

    def __init__(self) -> None:
        self.made: list[DecodePool] = []

    def __call__(self, of: Plan) -> DecodePool:
        self.made.append(DecodePool(of))
        return self.made[-1]


@pytest.fixture
def make_pool() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    for pool in pools.made:
        pool.close()


async def test_arrays_of_all_datatypes_come_back_as_they_are(make_pool: Pools) -> None:
    values = {name: [[1, 0]] * 3 for name in NUMERIC}
    call = v1({"inputs": {**values, "BOOL": [[True, False]] * 3, "text": ["a", "ä", ""]}})
    here = codec.decode_request(call, plan(ALL))
    there = await make_pool(plan(ALL)).decode(call)
    assert len(there.inputs) == 14
    for ours, theirs in zip(here.inputs, there.inputs, strict=True):
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours)


async def test_errors_come_back_as_they_are(make_pool: Pools) -> None:
    call = v1({"instances": [[1, 2]]})
    with pytest.raises(RequestError) as here:
        codec.decode_request(call, plan(ROWS))
    with pytest.raises(RequestError) as there:
        await make_pool(plan(ROWS)).decode(call)
    assert vars(there.value) == vars(here.value)


async def test_headers_count_there_too(make_pool: Pools) -> None:
    with pytest.raises(RequestError, match="one of gzip"):
        await make_pool(plan(ROWS)).decode(v1({}, **{"Content-Encoding": "br"}))


async def test_a_helper_that_died_is_started_again(make_pool: Pools) -> None:
    pool = make_pool(plan(ROWS))
    call = v1({"instances": [[1] * 10]})
    await pool.decode(call)
    process = pool._process
    assert process is not None
    process.kill()
    process.wait()
    assert (await pool.decode(call)).inputs[0].shape == (1, 10)
    assert pool._process is not process


async def test_the_helper_ends_with_its_pool(make_pool: Pools) -> None:
    pool = make_pool(plan(ROWS))
    await pool.decode(v1({"instances": [[1] * 10]}))
    process = pool._process
    assert process is not None
    pool.close()
    assert process.poll() is not None


async def test_the_event_loop_goes_on_while_large_bodies_are_decoded(make_pool: Pools) -> None:
    call = v1({"instances": np.random.default_rng(0).standard_normal((16_000, 10)).tolist()})
    assert len(call.body) > 3_000_000
    pool = make_pool(plan(ROWS))
    await pool.decode(call)
    late: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            late.append(time.monotonic() - before - 0.001)

    ticking = asyncio.create_task(tick())
    for _ in range(5):
        await pool.decode(call)
    ticking.cancel()
    # on the loop it would stand still for forty milliseconds and more; a busy machine may well take some of its own
    assert np.percentile(late, 90) < 0.02


@pytest.mark.parametrize(
    ("call", "heavy"),
    [
        (v1({"instances": [[1] * 10]}), False),
        (v1({"instances": [[1] * 10] * 20_000}), True),
        (
            Call("v2", "m", bytes(1 << 20), {"Inference-Header-Content-Length": "100"}, "application/octet-stream"),
            False,
        ),
        (Call("v2", "m", bytes(1 << 20), {"Inference-Header-Content-Length": "300000"}, "application/json"), True),
        (Call("v2", "m", bytes(1 << 20), {"Inference-Header-Content-Length": "oops"}, "application/json"), False),
        (Call("v2", "m", bytes(1 << 20), {}, "application/x-npy"), False),
        (Call("v2", "m", bytes(1 << 20), {}, "text/html"), False),
        (Call("v2", "m", bytes(5000), {"Content-Encoding": "gzip"}, "application/json"), True),
        (Call("v2", "m", bytes(4000), {"Content-Encoding": "gzip"}, "application/json"), False),
        (Call("v2", "m", gzip.compress(b"0" * 16_000), {"Content-Encoding": "gzip"}, "application/json"), False),
        (Call("v2", "m", gzip.compress(b"{}" * 8_000), {"Content-Encoding": "gzip"}, "application/json"), True),
        (Call("v2", "m", gzip.compress(bytes(5_000_000)), {"Content-Encoding": "gzip"}, "application/json"), True),
        (Call("v1", "m", b'{"instances": [' + b"{}," * 1500 + b"{}]}", {}, "application/json"), True),
        (Call("v2", "m", npy_of(np.zeros((1000, 600), ">f4")), {}, "application/x-npy"), True),
        (Call("v2", "m", npy_of(np.zeros((600, 1000), np.float32).T), {}, "application/x-npy"), True),
        (Call("v2", "m", npy_of(np.zeros((1000, 600), np.float32)), {}, "application/x-npy"), False),
    ],
    ids=[
        "small JSON",
        "large JSON",
        "binary tensors",
        "large JSON before binary tensors",
        "a bad length is refused on the spot",
        "npy",
        "a bad type is refused on the spot",
        "compressed",
        "compressed, tiny and damaged",
        "compressed and plain",
        "compressed and all brackets",
        "compressed and a bomb",
        "JSON of many objects",
        "npy of another byte order",
        "npy by columns",
        "npy as it is",
    ],
)
def test_what_leaves_the_event_loop(call: Call, heavy: bool) -> None:
    assert codec.is_heavy(call, plan(ROWS)) is heavy
