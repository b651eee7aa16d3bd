"""Requests that are ready to paste, fitted to a model's task and signature. Pure; called by `localrun` when a model serves."""

from __future__ import annotations

import json
import math
import mimetypes
import shlex

from torchmodel_runtime.config import ServerConfig, TensorSpec

MAX_ELEMENTS = 64
"""A row with more numbers is not pasted but read from a file; our choice, about three lines of a terminal."""

SAMPLES = {"BOOL": True, "FP16": 1.0, "FP32": 1.0, "FP64": 1.0}

SUFFIXES = {
    "image-classification": (".jpg", ".jpeg", ".png", ".webp"),
    "speech": (".wav", ".flac", ".ogg", ".mp3"),
}
"""By task: files that could be asked with, if one lies beside the manifest."""

STAND_INS = {"image-classification": "photo.jpg", "speech": "speech.wav"}


def make_recipe(config: ServerConfig, url: str, sample: str | None = None) -> list[str]:
    """Lines that ask the model: a curl command and the same by `torchmodel predict`; sample is a medium that exists."""
    if config.task.type in SUFFIXES:
        file = sample or STAND_INS[config.task.type]
        content_type = mimetypes.guess_type(file)[0] or "application/octet-stream"
        return _medium_recipe(config, url, content_type, f"--data-binary @{shlex.quote(file)}", shlex.quote(file))
    if config.task.type == "text-embedding":
        return _medium_recipe(config, url, "text/plain", "-d 'A sentence.'", "'A sentence.'")
    inputs = config.signature.inputs if config.signature else []
    request = json.dumps({"inputs": [_sample(tensor) for tensor in inputs]})
    is_short = all(_elements(tensor) <= MAX_ELEMENTS for tensor in inputs)
    head = f"curl -s {url}/v2/models/{config.name}/infer -H 'Content-Type: application/json'"
    if is_short:
        return [f"{head} -d '{request}'", f"torchmodel predict {config.name} '{request}'"]
    names = ", ".join(f"{tensor.name} {tensor.datatype} {_row_shape(tensor)}" for tensor in inputs)
    return [
        f'# request.json: {{"inputs": [{{"name": …, "datatype": …, "shape": …, "data": […]}}]}} with {names}',
        f"{head} -d @request.json",
        f"torchmodel predict {config.name} request.json",
    ]


def _medium_recipe(config: ServerConfig, url: str, content_type: str, body: str, argument: str) -> list[str]:
    return [
        f"curl -s {url}/predictions/{config.name} -H 'Content-Type: {content_type}' {body}",
        f"torchmodel predict {config.name} {argument}",
    ]


def _row_shape(tensor: TensorSpec) -> list[int]:
    """One row, and 1 for each variable dimension."""
    return [1 if size == -1 else size for size in tensor.shape]


def _elements(tensor: TensorSpec) -> int:
    return math.prod(_row_shape(tensor))


def _sample(tensor: TensorSpec) -> dict[str, object]:
    count = min(_elements(tensor), MAX_ELEMENTS)
    data = [SAMPLES.get(tensor.datatype, 1)] * count
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": _row_shape(tensor), "data": data}
