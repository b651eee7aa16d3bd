"""What the client scripts share: the order they are given, tensors as JSON, and the report of every attempt.

Run by testkit/client_environment.py as `python SCRIPT ORDER REPORT`, in an environment without our packages. A script makes
its attempts and tells what came of each; whether that is right is for the tests to say.
"""

from __future__ import annotations

import base64
import inspect
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
}


class Order:
    """What to ask, and where."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.servers: dict[str, str] = document["servers"]
        self.cases: list[dict[str, Any]] = document["cases"]
        self.tensors = {name: to_numpy(tensor) for name, tensor in document["tensors"].items()}
        self.rows = np.array([document["row"]], np.float32)
        self.texts: list[str] = document["texts"]
        self.pictures = [base64.b64decode(picture) for picture in document["pictures"]]


def to_numpy(tensor: dict[str, Any]) -> np.ndarray:
    """A tensor of the order."""
    return np.array(tensor["values"], NUMPY_DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


def to_json(array: np.ndarray) -> dict[str, Any]:
    """An array for the report: floats as the doubles they are, bytes as text."""
    flat = array.flatten()
    values = flat.astype(np.float64) if array.dtype == ml_dtypes.bfloat16 else flat
    texts = [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": texts}


class Report:
    """Attempts by name: `{"answer": ...}`, or `{"error": {"type", "message", "status"}}`."""

    def __init__(self) -> None:
        self.attempts: dict[str, Any] = {}

    def attempt(self, name: str, ask: Callable[[], Any]) -> None:
        """Whatever the client raises is told, not raised."""
        try:
            self.attempts[name] = {"answer": ask()}
        except Exception as error:  # noqa: BLE001 - that is what is reported
            self.attempts[name] = {"error": describe_error(error)}

    async def attempt_later(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        """The same for a client that is awaited."""
        try:
            self.attempts[name] = {"answer": await ask()}
        except Exception as error:  # noqa: BLE001
            self.attempts[name] = {"error": describe_error(error)}


def describe_error(error: Exception) -> dict[str, Any]:
    """Type, words and status of an error, in the forms of tritonclient, httpx and grpc."""
    told = {"type": type(error).__name__, "message": str(error), "status": None}
    if callable(getattr(error, "message", None)):
        told |= {"message": error.message(), "status": error.status()}
    elif hasattr(error, "response"):
        told["status"] = error.response.status_code
    elif callable(getattr(error, "details", None)):
        told |= {"message": error.details(), "status": error.code().name}
    return told


def main(make_report: Callable[[Order], Any]) -> None:
    """Read the order, make the report, write it."""
    order = Order(json.loads(Path(sys.argv[1]).read_text()))
    report = make_report(order)
    if inspect.isawaitable(report):
        import asyncio

        report = asyncio.run(report)  # type: ignore[arg-type]
    Path(sys.argv[2]).write_text(json.dumps(report.attempts))
