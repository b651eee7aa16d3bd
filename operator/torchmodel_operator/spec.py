"""The TorchModel resource as frozen types: the single source of the CRD, of parsing, and of `torchmodel run`.

Field types carry range, default and description; `RULES` are the rules across fields, each as CEL for the API server and
as the same check in Python for `torchmodel validate` and `run` (a test holds the two together). What only the operator
can judge (its own consent to code, say) is checked in `parse_model` by the facts passed in. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from torchmodel_runtime.config import Architecture as EntrypointArchitecture
from torchmodel_runtime.config import (
    CheckpointFormat,
    ColdStart,
    Document,
    LoadSafety,
    Security,
    Serving,
    Sha256,
    Signature,
    Task,
)

from torchmodel_operator.errors import SpecError

GROUP = "serving.torchmodel.dev"
VERSION = "v1alpha1"
KIND = "TorchModel"
PLURAL = "torchmodels"
API_VERSION = f"{GROUP}/{VERSION}"

MAX_NAME_LENGTH = 40
"""Leaves room for the suffixes Kubernetes adds to pod names within a label's 63 characters."""

Quantity = Annotated[
    str | int,
    Meta(description="A Kubernetes quantity, for example 500m, 2 or 4Gi."),
]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]


class SecretReference(Document, frozen=True, kw_only=True):
    """A Secret in the model's own namespace."""

    secret_name: Annotated[
        Name,
        Meta(
            description="Secret with the keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and "
            "AWS_ENDPOINT_URL for s3, or authorization (the header's value) for https. Only the fetcher container sees it."
        ),
    ]


class Checkpoint(Document, frozen=True, kw_only=True):
    """The model file: which, where, and how to know it is the right one."""

    uri: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=2048,
            description="Where the checkpoint lies: s3://bucket/key, https://host/path, http://host/path, or file:///path in "
            "the serving image. A trailing / means a folder. `torchmodel run` also takes file:path relative to the manifest.",
        ),
    ]
    sha256: Annotated[
        Sha256 | None,
        Meta(
            description="Digest the bytes must have, or nothing is loaded. Of a folder: "
            "`cd folder && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`."
        ),
    ] = None
    format: Annotated[
        CheckpointFormat,
        Meta(description="What the file must be. auto looks at its first bytes, never at its name."),
    ] = "auto"
    key: Annotated[
        str,
        Meta(
            max_length=256,
            description="Name under which the state_dict is nested in the file, for example model_state_dict; dots go deeper.",
        ),
    ] = ""
    credentials: Annotated[
        SecretReference | None, Meta(description="Credentials for the source, given as a Secret.")
    ] = None


class ConfigMapKey(Document, frozen=True, kw_only=True):
    """One key of a ConfigMap in the model's own namespace."""

    name: Annotated[Name, Meta(description="Name of the ConfigMap.")]
    key: Annotated[
        str, Meta(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253, description="Key that holds the Python source.")
    ] = "model.py"


class CodeSource(Document, frozen=True, kw_only=True):
    """Python source that defines the class; exactly one of the fields is set."""

    inline: Annotated[
        Annotated[str, Meta(min_length=1, max_length=65536)] | None,
        Meta(description="The source itself, up to 64 KiB."),
    ] = None
    config_map: Annotated[ConfigMapKey | None, Meta(description="The source as a key of a ConfigMap.")] = None


class Architecture(EntrypointArchitecture, frozen=True, kw_only=True):
    """The class that the weights belong to."""

    source: Annotated[
        CodeSource | None,
        Meta(
            description="Code that comes with the model; without it the class is in the image. Needs "
            "security.allowCodeExecution and an operator that allows it."
        ),
    ] = None


class Gpu(Document, frozen=True, kw_only=True):
    """GPUs of one replica."""

    count: Annotated[int, Meta(ge=0, le=64, description="GPUs for each replica; 0 serves on the CPU.")] = 0
    resource: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
            max_length=253,
            description="Extended resource to request, for example nvidia.com/gpu, nvidia.com/mig-1g.10gb or amd.com/gpu.",
        ),
    ] = "nvidia.com/gpu"


ResourceName = Literal["cpu", "memory", "ephemeral-storage"]


class ComputeResources(Document, frozen=True, kw_only=True):
    """CPU, memory and temporary storage."""

    cpu: Annotated[Quantity | None, Meta(description="CPU cores.")] = None
    memory: Annotated[Quantity | None, Meta(description="Memory, weights and batches included.")] = None
    ephemeral_storage: Annotated[Quantity | None, Meta(description="Local disk, the checkpoint included.")] = (
        msgspec.field(default=None, name="ephemeral-storage")
    )


class Resources(Document, frozen=True, kw_only=True):
    """What one replica needs."""

    requests: Annotated[ComputeResources, Meta(description="Reserved on the node.")] = ComputeResources()
    limits: Annotated[ComputeResources, Meta(description="Never exceeded; a CPU limit also sets the thread count.")] = (
        ComputeResources()
    )
    gpu: Annotated[Gpu, Meta(description="GPUs of one replica.")] = Gpu()


class Toleration(Document, frozen=True, kw_only=True):
    """A taint that replicas tolerate, as in a pod."""

    key: Annotated[str, Meta(max_length=316, description="Taint key; empty with operator Exists matches all.")] = ""
    operator: Annotated[Literal["Exists", "Equal"], Meta(description="How the value is compared.")] = "Equal"
    value: Annotated[str, Meta(max_length=63, description="Taint value, with operator Equal.")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"], Meta(description="Taint effect; empty matches all.")
    ] = ""
    toleration_seconds: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="How long, with effect NoExecute; unset is for ever.")
    ] = None


class Scheduling(Document, frozen=True, kw_only=True):
    """Which nodes replicas may run on."""

    node_selector: Annotated[
        dict[Annotated[str, Meta(max_length=316)], Annotated[str, Meta(max_length=63)]],
        Meta(max_length=32, description="Labels a node must have."),
    ] = {}
    tolerations: Annotated[
        list[Toleration],
        Meta(
            max_length=32, description="Taints to tolerate. That of resources.gpu.resource is tolerated without saying."
        ),
    ] = []


class ImageReference(Document, frozen=True, kw_only=True):
    """The container image of the runtime, and how it is pulled."""

    name: Annotated[
        str,
        Meta(
            max_length=512,
            description="Image that serves, built from the runtime image with the packages your class needs. "
            "Empty: the runtime image the operator was installed with.",
        ),
    ] = ""
    pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"], Meta(description="When the node pulls the image.")
    ] = "IfNotPresent"
    pull_secrets: Annotated[
        list[Name], Meta(max_length=8, description="Secrets of type kubernetes.io/dockerconfigjson for the registry.")
    ] = []


class TorchModelSpec(Document, frozen=True, kw_only=True):
    """What to serve and how."""

    checkpoint: Annotated[
        Checkpoint, Meta(description="The model file: which, where, and how to know it is the right one.")
    ]
    architecture: Annotated[Architecture, Meta(description="The class that the weights belong to.")]
    task: Annotated[Task, Meta(description="What the endpoint does with a request; tensors in and out by default.")] = (
        Task()
    )
    signature: Annotated[
        Signature | None, Meta(description="Inputs and outputs; needed for task type tensor, known by the other tasks.")
    ] = None
    image: Annotated[ImageReference, Meta(description="The container image of the runtime.")] = ImageReference()
    replicas: Annotated[int, Meta(ge=0, le=1000, description="How many replicas serve; kubectl scale sets it.")] = 1
    serving: Annotated[Serving, Meta(description="How the endpoint serves.")] = Serving()
    resources: Annotated[Resources, Meta(description="What one replica needs.")] = Resources()
    scheduling: Annotated[Scheduling, Meta(description="Which nodes replicas may run on.")] = Scheduling()
    security: Annotated[Security, Meta(description="What the checkpoint's owner allows.")] = Security()


class Condition(Document, frozen=True, kw_only=True):
    """One aspect of the model's state, as in the Kubernetes API conventions."""

    type: Annotated[str, Meta(max_length=316, description="Ready, Reconciling or Stalled.")]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether the condition holds.")]
    reason: Annotated[str, Meta(max_length=1024, description="Why, as one stable CamelCase word.")]
    message: Annotated[str, Meta(max_length=32768, description="Why, as a sentence, with the next step.")]
    last_transition_time: Annotated[str, Meta(description="When status last changed, RFC 3339.")]
    observed_generation: Annotated[int, Meta(ge=0, description="The metadata.generation this was judged from.")]


class LoadedCheckpoint(Document, frozen=True, kw_only=True):
    """The bytes that serve."""

    uri: Annotated[str, Meta(description="Where they came from.")]
    sha256: Annotated[str, Meta(description="Their digest, computed while they were fetched.")]
    short_sha256: Annotated[str, Meta(description="Its first 12 characters.")]
    size_bytes: Annotated[int, Meta(ge=0, description="Their size.")]


class TorchModelStatus(Document, frozen=True, kw_only=True):
    """What was seen of the model."""

    observed_generation: Annotated[
        int, Meta(ge=0, description="The metadata.generation this status was judged from.")
    ] = 0
    conditions: Annotated[list[Condition], Meta(max_length=8, description="Ready, Reconciling and Stalled.")] = []
    url: Annotated[str, Meta(description="Address inside the cluster.")] = ""
    replicas: Annotated[int, Meta(ge=0, description="Replicas that exist.")] = 0
    ready_replicas: Annotated[int, Meta(ge=0, description="Replicas that serve.")] = 0
    updated_replicas: Annotated[int, Meta(ge=0, description="Replicas of the newest revision.")] = 0
    selector: Annotated[str, Meta(description="Label selector of the replicas, for the scale subresource.")] = ""
    checkpoint: Annotated[LoadedCheckpoint | None, Meta(description="The bytes that serve.")] = None
    load_safety: Annotated[
        LoadSafety | None,
        Meta(
            description="weights-only: nothing that came with the model could run. code: its code was allowed to run."
        ),
    ] = None
    device: Annotated[str, Meta(description="Where the model runs, for example cpu or cuda:0.")] = ""
    cold_start: Annotated[ColdStart | None, Meta(description="Where the time of the last start went, in seconds.")] = (
        None
    )
    batching: Annotated[str, Meta(description="Whether requests share batches, and why not.")] = ""


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


class Model(NamedTuple):
    """A TorchModel, parsed: what the rest of the operator works with."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: TorchModelSpec


def _given(document: object, path: str) -> str:
    """What stands at a msgspec error path such as `.signature.inputs[0].shape`, shortened; empty when nothing does."""
    for field, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
        if field and isinstance(document, Mapping) and field in document:
            document = document[field]
        elif index and isinstance(document, list) and int(index) < len(document):
            document = document[int(index)]
        else:
            return ""
    return "" if isinstance(document, Mapping | list) else f"got {str(document)!r:.120}, "


def _wire_message(error: msgspec.ValidationError, document: object, prefix: str) -> str:
    """msgspec says ``Expected `int` >= 1 - at `$.serving.x` ``; users read the path first, then what they gave."""
    text, separator, path = str(error).rpartition(" - at `$")
    if not separator:
        return f"{prefix}: {error}"
    path = path.rstrip("`")
    return f"{prefix}{path}: {_given(document, path)}{text[0].lower()}{text[1:]}".replace("`", "")


def parse_spec(spec: object) -> TorchModelSpec:
    """Turn a manifest's spec into its type, and check the rules across fields.

    Raises SpecError naming the field path, what was given and what is allowed.
    """
    try:
        parsed = msgspec.convert(spec, TorchModelSpec)
    except msgspec.ValidationError as error:
        raise SpecError(
            _wire_message(error, spec, "spec"),
            "Correct the field; `kubectl explain torchmodel.spec` lists what is allowed.",
        ) from None
    for rule in RULES:
        if not rule.holds(parsed):
            raise SpecError(f"{'.'.join(rule.path)}: {rule.message}", "Correct the fields named.")
    return parsed


def check_name(name: str) -> None:
    """Check a model's name as the API server does by NAME_RULES. Raises SpecError."""
    (_, too_long), (_, not_a_label) = NAME_RULES
    if len(name) > MAX_NAME_LENGTH:
        raise SpecError(f"{too_long}, got {name!r} with {len(name)}", "Choose a shorter name.")
    if re.search(NAME_PATTERN, name) is None:
        raise SpecError(f"{not_a_label}, got {name!r}", "Choose another name.")


def parse_model(body: Mapping[str, Any]) -> Model:
    """Turn a TorchModel as the API server gives it into a Model. Raises SpecError as parse_spec does."""
    metadata = body["metadata"]
    check_name(metadata["name"])
    return Model(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=parse_spec(body.get("spec", {})),
    )
