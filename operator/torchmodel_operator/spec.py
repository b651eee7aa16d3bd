"""The TorchModel resource as frozen types: the single source of the CRD, of parsing, and of `torchmodel run`.

Field types carry range, default and description; the rules across fields are in `rules`. What only the operator can judge
(its own consent to code, say) is `consent`'s. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from torchmodel_operator.rules import MAX_NAME_LENGTH, NAME_PATTERN, NAME_RULES, RULES

GROUP = "serving.torchmodel.dev"
VERSION = "v1alpha1"
KIND = "TorchModel"
PLURAL = "torchmodels"
API_VERSION = f"{GROUP}/{VERSION}"

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
    batching: Annotated[
        str,
        Meta(
            description="Whether requests share batches, and by how much a row's answer differed in company at the start; or "
            "why they don't."
        ),
    ] = ""
    parallelism: Annotated[
        str, Meta(description="Processes, workers and threads of each replica, and why so many.")
    ] = ""


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
