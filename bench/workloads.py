"""What is asked of every server: three workloads, their seeded inputs, and how each dialect spells them.

Pure; knows neither servers nor torch. A format is one way to spell a request: `encode` makes the body of one input,
`decode` reads the outputs of one answer.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

VOCABULARY = 8192
JSON_TYPE = {"Content-Type": "application/json"}
BINARY_TYPE = {"Content-Type": "application/octet-stream"}
V2_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Workload:
    """One model and the inputs it is asked."""

    name: str
    entrypoint: str
    datatype: str
    """Open Inference Protocol datatype of the one input, `x`."""
    shape: tuple[int, ...]
    """One input, without the batch; -1 varies."""
    outputs: int
    """Columns of the one output, `y`, FP32."""
    count: int
    """Different inputs, sent in turn."""
    connections: tuple[int, ...]
    """Open connections of the load generator, one point each."""
    limit_batches: tuple[int, ...] = ()
    """Batch sizes at which bare torch is measured; none: it is not."""
    stretch: int = 1
    """Points are so many times longer. wrk starts on an idle server and forgets what is in work when it ends: half a
    batch of 32 images on average, which is 4 % of ten seconds."""


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", "bench_models:Mlp", "FP32", (10,), 1, 64, (1, 64)),
        Workload("resnet18", "bench_models:ResNet18", "FP32", (3, 224, 224), 1000, 8, (64,), (1, 4, 8), stretch=3),
        Workload("encoder", "bench_models:Encoder", "INT64", (-1,), 4, 512, (64,)),
    )
}


@functools.lru_cache
def make_inputs(name: str) -> list[np.ndarray]:
    """Every input of a workload, one row each: (10,) float32, (3, 224, 224) float32, or (length,) int64.

    Lengths are 8 + 120·Beta(1.5, 3): 8 to 128 with a mean near 48 and a long right tail. Floats have four decimals, so
    that JSON and binary forms say the same.
    """
    rng, workload = np.random.default_rng(7), WORKLOADS[name]
    if name == "encoder":
        lengths = 8 + np.round(120 * rng.beta(1.5, 3.0, workload.count)).astype(int)
        return [rng.integers(1, VOCABULARY, length) for length in lengths]
    draw = functools.partial(rng.uniform, -1, 1) if name == "mlp" else functools.partial(rng.normal, 0, 1)
    return [draw(workload.shape).round(4).astype(np.float32) for _ in range(workload.count)]


def nested(x: np.ndarray) -> list[Any]:
    """The array as lists; floats as the shortest decimals that mean the same float32."""
    return x.tolist() if x.dtype.kind == "i" else x.astype(np.float64).round(4).tolist()


def dump(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def v2_tensor(x: np.ndarray, **extra: Any) -> dict[str, Any]:
    """One V2 input tensor with a batch of one."""
    return {"name": "x", "shape": [1, *x.shape], "datatype": "INT64" if x.dtype.kind == "i" else "FP32", **extra}


def encode(form: str, x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of one request in a format."""
    if form == "plain":  # {"inputs": [...]} -> {"outputs": [...]}, what people write by hand
        return dump({"inputs": nested(x)}), JSON_TYPE
    if form == "v1":  # KServe V1
        return dump({"instances": [nested(x)]}), JSON_TYPE
    if form == "v2":  # Open Inference Protocol, JSON
        return dump({"inputs": [v2_tensor(x, data=nested(x.ravel()))]}), JSON_TYPE
    if form == "v2-binary":  # Open Inference Protocol, binary tensor extension
        raw = x.tobytes()
        head = dump(
            {
                "inputs": [v2_tensor(x, parameters={"binary_data_size": len(raw)})],
                "parameters": {"binary_data_output": True},
            }
        )
        return head + raw, {**BINARY_TYPE, V2_HEADER_LENGTH: str(len(head))}
    if form == "raw":  # bytes in, float32 bytes out
        return x.tobytes(), BINARY_TYPE
    if form == "base64":  # the same bytes inside JSON
        return dump({"inputs": base64.b64encode(x.tobytes()).decode()}), JSON_TYPE
    raise ValueError(f"format: got {form!r}, must be plain, v1, v2, v2-binary, raw or base64")


def decode(form: str, body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    """The outputs in one answer, flat float32."""
    if form == "raw":
        return np.frombuffer(body, np.float32)
    if form == "v2-binary" and headers.get(V2_HEADER_LENGTH):
        return np.frombuffer(body[int(headers[V2_HEADER_LENGTH]) :], np.float32)
    answer = json.loads(body)["predictions" if form == "v1" else "outputs"]
    return np.asarray(answer[0]["data"] if form in ("v2", "v2-binary") else answer, np.float32).ravel()
