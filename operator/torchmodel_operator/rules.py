"""The rules across fields of a TorchModel: what has no effect in its combination, or cannot work, is refused.

Each rule is CEL for the API server (`crd` puts it into the schema) and the same check in Python for the operator,
`torchmodel validate` and `run`; a test holds the two together. The API server fills defaults before it evaluates, so a field
with a default is there whenever its parent is. Only a rule at an object that is itself a default ({}) must ask with has():
the API server evaluates it once on that bare default, when the CRD is created. A value that equals its default counts as not
given. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torchmodel_runtime.config import Grpc, Limits, Telemetry

from torchmodel_operator.quantities import parse_quantity

if TYPE_CHECKING:  # spec imports this module
    from torchmodel_operator.spec import TorchModelSpec

MAX_NAME_LENGTH = 40
"""Leaves room for the suffixes Kubernetes adds to pod names within a label's 63 characters."""


class Rule(NamedTuple):
    """A rule across fields. `cel` is evaluated at `path` by the API server; `holds` is the same on the parsed spec."""

    path: tuple[str, ...]
    """Wire path below the resource's root, for example ("spec", "task")."""
    cel: str
    message: str
    holds: Callable[[TorchModelSpec], bool]


_OPTIONS = (
    ("image-classification", "imageClassification"),
    ("text-embedding", "textEmbedding"),
    ("speech", "speech"),
)


def _option_rule(task_type: str, field: str) -> Rule:
    attribute = re.sub(r"([A-Z])", r"_\1", field).lower()
    return Rule(
        ("spec", "task"),
        f"!has(self.{field}) || self.type == '{task_type}'",
        f"{field} has an effect only with type: {task_type}",
        lambda spec: getattr(spec.task, attribute) is None or spec.task.type == task_type,
    )


_URI_PATTERN = r"^(s3|https?)://[^/]+/.|^file:///.|^file:[^/~]|^/."
"""What a fetcher can open; file: without slashes is relative to the manifest, and nobody expands ~."""


def _is_allowed_uri(uri: str) -> bool:
    return re.search(_URI_PATTERN, uri) is not None


def _declares_batch(spec: TorchModelSpec) -> bool:
    signature = spec.signature
    return signature is None or all(tensor.shape[0] == -1 for tensor in [*signature.inputs, *signature.outputs])


def _has_unique_names(spec: TorchModelSpec) -> bool:
    signature = spec.signature
    return signature is None or all(
        len({tensor.name for tensor in tensors}) == len(tensors) for tensors in (signature.inputs, signature.outputs)
    )


def _holds_numbers(spec: TorchModelSpec) -> bool:
    signature = spec.signature
    return signature is None or all(tensor.datatype != "BYTES" for tensor in [*signature.inputs, *signature.outputs])


def _has_length(spec: TorchModelSpec) -> bool:
    """Something of variable length can be padded."""
    return (
        spec.serving.batching.padding is None
        or spec.signature is None
        or any(tensor.shape[1:2] == [-1] for tensor in spec.signature.inputs)
    )


def _varies_in_length_alone(spec: TorchModelSpec) -> bool:
    return (
        spec.serving.batching.padding is None
        or spec.signature is None
        or all(-1 not in tensor.shape[2:] for tensor in spec.signature.inputs)
    )


def _lets_signature_through(spec: TorchModelSpec) -> bool:
    signature, limits = spec.signature, spec.serving.limits
    return signature is None or (
        len(signature.inputs) <= limits.max_tensors
        and all(len(tensor.shape) <= limits.max_rank for tensor in signature.inputs)
    )


def _holds_one_request(spec: TorchModelSpec) -> bool:
    """The largest body that is allowed fits into what all requests may hold."""
    serving = spec.serving
    largest = max(serving.max_request_bytes, serving.grpc.max_message_bytes if serving.grpc.enabled else 0)
    return serving.limits.max_bytes_in_flight == 0 or serving.limits.max_bytes_in_flight >= largest


def _is_one_engine(spec: TorchModelSpec) -> bool:
    """A GPU is asked for no more than one engine."""
    has_gpu = spec.serving.device == "cuda" or spec.resources.gpu.count > 0
    return not has_gpu or (spec.serving.workers <= 1 and spec.serving.processes <= 1)


def _fits_cpu_limit(spec: TorchModelSpec) -> bool:
    limit = parse_quantity(spec.resources.limits.cpu)
    serving = spec.serving
    busy = max(1, serving.threads) * max(1, serving.workers) * max(1, serving.processes)
    return limit is None or busy <= 1 or busy - 1 < limit


RULES: tuple[Rule, ...] = (
    *(_option_rule(task_type, field) for task_type, field in _OPTIONS),
    Rule(
        ("spec",),
        "has(self.signature) || (has(self.task) && self.task.type != 'tensor')",
        "signature is needed with task.type: tensor; list inputs and outputs with name, datatype and shape",
        lambda spec: spec.signature is not None or spec.task.type != "tensor",
    ),
    Rule(
        ("spec",),
        "!has(self.signature) || !has(self.task) || self.task.type == 'tensor'",
        "signature has an effect only with task.type: tensor; the other types know their own",
        lambda spec: spec.signature is None or spec.task.type == "tensor",
    ),
    Rule(
        ("spec", "signature"),
        "self.inputs.all(t, t.shape[0] == -1) && self.outputs.all(t, t.shape[0] == -1)",
        "the first dimension of every input and output is the batch and must be -1",
        _declares_batch,
    ),
    Rule(
        ("spec", "signature"),
        "self.inputs.all(t, self.inputs.exists_one(u, u.name == t.name)) && "
        "self.outputs.all(t, self.outputs.exists_one(u, u.name == t.name))",
        "names must be unique among the inputs, and among the outputs",
        _has_unique_names,
    ),
    Rule(
        ("spec", "signature"),
        "self.inputs.all(t, t.datatype != 'BYTES') && self.outputs.all(t, t.datatype != 'BYTES')",
        "datatype BYTES is for task types that take text or media; a module takes and gives numbers",
        _holds_numbers,
    ),
    Rule(
        ("spec", "checkpoint", "uri"),
        f"self.matches('{_URI_PATTERN}')",
        "must be s3://bucket/key, https://host/path, http://host/path or file:///path",
        lambda spec: _is_allowed_uri(spec.checkpoint.uri),
    ),
    Rule(
        ("spec", "checkpoint"),
        "!has(self.credentials) || self.uri.matches('^(s3|https?)://')",
        "credentials has no effect with a file: uri",
        lambda spec: spec.checkpoint.credentials is None or not spec.checkpoint.uri.startswith(("file:", "/")),
    ),
    Rule(
        ("spec", "checkpoint"),
        "!has(self.format) || self.format != 'safetensors' || !has(self.key) || self.key == ''",
        "key has no effect with format: safetensors, which nests nothing",
        lambda spec: spec.checkpoint.format != "safetensors" or not spec.checkpoint.key,
    ),
    Rule(
        ("spec", "serving", "batching"),
        "!has(self.maxSize) || self.maxSize > 1 || !has(self.maxDelayMilliseconds) || self.maxDelayMilliseconds == 0",
        "maxDelayMilliseconds has no effect with maxSize: 1, which switches batching off",
        lambda spec: spec.serving.batching.max_size > 1 or spec.serving.batching.max_delay_milliseconds == 0,
    ),
    Rule(
        ("spec", "serving", "batching"),
        "!has(self.padding) || self.maxSize > 1",
        "padding has no effect with maxSize: 1, which switches batching off",
        lambda spec: spec.serving.batching.padding is None or spec.serving.batching.max_size > 1,
    ),
    Rule(
        ("spec",),
        "!has(self.serving.batching.padding) || self.task.type == 'tensor'",
        "serving.batching.padding has an effect only with task.type: tensor; text-embedding pads by itself",
        lambda spec: spec.serving.batching.padding is None or spec.task.type == "tensor",
    ),
    Rule(
        ("spec",),
        "!has(self.serving.batching.padding) || !has(self.signature) || "
        "self.signature.inputs.exists(t, size(t.shape) > 1 && t.shape[1] == -1)",
        "serving.batching.padding needs an input whose second dimension, the length, is -1, such as shape: [-1, -1, 80]",
        _has_length,
    ),
    Rule(
        ("spec",),
        "!has(self.serving.batching.padding) || !has(self.signature) || "
        "self.signature.inputs.all(t, t.shape.lastIndexOf(-1) < 2)",
        "serving.batching.padding pads the second dimension only, so no later one of an input may be -1",
        _varies_in_length_alone,
    ),
    Rule(
        ("spec", "serving", "limits"),
        "!has(self.maxJsonElements) || self.maxJsonElements <= self.maxElements || "
        f"self.maxJsonElements == {Limits().max_json_elements}",
        "maxJsonElements has no effect above maxElements, which counts tensors in every form",
        lambda spec: (
            (limits := spec.serving.limits).max_json_elements <= limits.max_elements
            or limits.max_json_elements == Limits().max_json_elements
        ),
    ),
    Rule(
        ("spec",),
        "self.serving.limits.maxBytesInFlight == 0 || (self.serving.limits.maxBytesInFlight >= self.serving.maxRequestBytes && "
        "(!self.serving.grpc.enabled || self.serving.limits.maxBytesInFlight >= self.serving.grpc.maxMessageBytes))",
        "serving.limits.maxBytesInFlight, which all requests share, must be 0 or let the largest in: at least maxRequestBytes "
        "and, with gRPC, maxMessageBytes",
        _holds_one_request,
    ),
    Rule(
        ("spec",),
        "!has(self.signature) || (size(self.signature.inputs) <= self.serving.limits.maxTensors && "
        "self.signature.inputs.all(t, size(t.shape) <= self.serving.limits.maxRank))",
        "serving.limits: maxTensors and maxRank must let the signature's own inputs through",
        _lets_signature_through,
    ),
    Rule(
        ("spec", "serving", "grpc"),
        f"!has(self.maxMessageBytes) || self.enabled || self.maxMessageBytes == {Grpc().max_message_bytes}",
        "maxMessageBytes has an effect only with enabled: true",
        lambda spec: (grpc := spec.serving.grpc).enabled or grpc.max_message_bytes == Grpc().max_message_bytes,
    ),
    Rule(
        ("spec", "serving", "telemetry"),
        f"!has(self.traceRatio) || self.otlpEndpoint != '' || self.traceRatio == {Telemetry().trace_ratio}",
        "traceRatio has no effect without otlpEndpoint, where the traces go",
        lambda spec: (
            (telemetry := spec.serving.telemetry).otlp_endpoint != ""
            or telemetry.trace_ratio == Telemetry().trace_ratio
        ),
    ),
    Rule(
        ("spec",),
        "(self.serving.workers <= 1 && self.serving.processes <= 1) || "
        "(self.serving.device != 'cuda' && self.resources.gpu.count == 0)",
        "serving.workers and serving.processes have no effect on a GPU, which one engine in one process keeps busy",
        _is_one_engine,
    ),
    Rule(
        ("spec",),
        "!has(self.resources.limits.cpu) || !isQuantity(string(self.resources.limits.cpu)) || "
        "(self.serving.threads <= 1 && self.serving.workers <= 1 && self.serving.processes <= 1) || "
        "double((self.serving.threads > 1 ? self.serving.threads : 1) * (self.serving.workers > 1 ? self.serving.workers : 1) * "
        "(self.serving.processes > 1 ? self.serving.processes : 1) - 1) < "
        "quantity(string(self.resources.limits.cpu)).asApproximateFloat()",
        "serving: threads x workers x processes must be at most resources.limits.cpu, rounded up; more are throttled together",
        _fits_cpu_limit,
    ),
    Rule(
        ("spec",),
        "!has(self.serving) || !has(self.serving.device) || self.serving.device != 'cpu' || !has(self.resources) || "
        "!has(self.resources.gpu) || !has(self.resources.gpu.count) || self.resources.gpu.count == 0",
        "resources.gpu.count has no effect with serving.device: cpu",
        lambda spec: spec.serving.device != "cpu" or spec.resources.gpu.count == 0,
    ),
    Rule(
        ("spec", "architecture", "source"),
        "has(self.inline) != has(self.configMap)",
        "exactly one of inline and configMap must be set",
        lambda spec: (
            (source := spec.architecture.source) is None or (source.inline is None) != (source.config_map is None)
        ),
    ),
    Rule(
        ("spec",),
        "!has(self.architecture.source) || (has(self.security) && self.security.allowCodeExecution)",
        "architecture.source is code that comes with the model and needs security.allowCodeExecution: true",
        lambda spec: spec.architecture.source is None or spec.security.allow_code_execution,
    ),
    Rule(
        ("spec",),
        "!has(self.task) || !has(self.task.imageClassification) || !has(self.task.imageClassification.labels) || "
        "size(self.task.imageClassification.labels) == 0 || !has(self.task.imageClassification.labelSet) || "
        "self.task.imageClassification.labelSet == 'none'",
        "task.imageClassification: give labels or labelSet, not both",
        lambda spec: (
            (options := spec.task.image_classification) is None or not options.labels or options.label_set == "none"
        ),
    ),
    Rule(
        ("spec",),
        "!has(self.task) || !has(self.task.imageClassification) || "
        "self.task.imageClassification.cropPixels <= self.task.imageClassification.resizePixels",
        "task.imageClassification: cropPixels must be at most resizePixels",
        lambda spec: (
            (options := spec.task.image_classification) is None or options.crop_pixels <= options.resize_pixels
        ),
    ),
)

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A Service's name is a DNS label (RFC 1035), stricter than the names of custom resources."""

NAME_RULES: tuple[tuple[str, str], ...] = (
    (
        f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
        f"metadata.name: must be at most {MAX_NAME_LENGTH} characters",
    ),
    (
        f"self.metadata.name.matches('{NAME_PATTERN}')",
        "metadata.name: must be lower-case letters, digits and -, and start with a letter: it names a Service",
    ),
)
