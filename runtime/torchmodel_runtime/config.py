"""The runtime's contract: every document that crosses its border, as frozen types.

The operator writes `ServerConfig` and `FetchConfig` into the pod, the `torchmodel` command hands the same documents to the
same processes on one machine, and both read `Receipt`, `Failure` and `ModelReport` back. `torchmodel_operator.spec` embeds
the shared parts (`Serving`, `Task`, `Signature`, ...), so range, default and unit exist once. This module imports neither
torch nor Kubernetes. Prose for humans: docs/runtime-contract.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

SERVER_CONFIG_VARIABLE = "TORCHMODEL_SERVER_CONFIG"
FETCH_CONFIG_VARIABLE = "TORCHMODEL_FETCH_CONFIG"
TERMINATION_LOG_VARIABLE = "TORCHMODEL_TERMINATION_LOG"
"""Names the file for the last word of a process that the kubelet did not start: a `Receipt` or a `Failure`."""

HTTP_PORT = 8080
GRPC_PORT = 8081
"""KServe's numbers for the two."""

EXIT_PERMANENT = 2
"""The same input will fail again: a wrong digest, a missing key, a bad setting."""
EXIT_RETRYABLE = 3
"""Trying again may help: the network, a server that is away, a full disk."""

RECEIPT_FILE = "receipt.json"
"""Written by the fetcher beside the checkpoint, last, after everything was verified."""

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
"""Open Inference Protocol V2 tensor datatypes, and Triton's BF16."""

Sha256 = Annotated[
    str, Meta(pattern="^[0-9a-f]{64}$", max_length=64, description="A SHA-256 digest in lower-case hex.")
]


class Document(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Base of all wire documents: camelCase on the wire, unknown fields are errors.

    Subclasses say frozen and kw_only again, since neither msgspec nor type checkers pass them on.
    """


class TensorSpec(Document, frozen=True, kw_only=True):
    """One input or output tensor."""

    name: Annotated[str, Meta(min_length=1, max_length=128, description="Tensor name, as clients write it.")]
    datatype: Annotated[Datatype, Meta(description="Open Inference Protocol datatype.")]
    shape: Annotated[
        list[Annotated[int, Meta(ge=-1)]],
        Meta(
            min_length=1,
            max_length=8,
            description="Dimensions; -1 is variable. The first one is the batch and must be -1.",
        ),
    ]


class Signature(Document, frozen=True, kw_only=True):
    """What the model takes and gives."""

    inputs: Annotated[
        list[TensorSpec],
        Meta(min_length=1, max_length=16, description="Input tensors, in the order of the module's forward arguments."),
    ]
    outputs: Annotated[
        list[TensorSpec],
        Meta(
            min_length=1,
            max_length=16,
            description="Output tensors, in the order the module returns them; by name when it returns a mapping.",
        ),
    ]


class Architecture(Document, frozen=True, kw_only=True):
    """The class that the weights belong to."""

    entrypoint: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$",
            max_length=256,
            description="module:Class or module:Class.factory, for example torch.nn:Linear. Must give a torch.nn.Module.",
        ),
    ]
    kwargs: Annotated[dict[str, Any], Meta(description="Keyword arguments for the entrypoint, JSON values.")] = {}


CheckpointFormat = Literal["auto", "safetensors", "state-dict"]


class ImageClassification(Document, frozen=True, kw_only=True):
    """Options of task type image-classification: an image in, the top k labels out."""

    resize_pixels: Annotated[
        int, Meta(ge=8, le=4096, description="The shorter side is resized to this many pixels (aspect ratio kept).")
    ] = 256
    crop_pixels: Annotated[int, Meta(ge=8, le=4096, description="Then a centred square of this side is cut out.")] = 224
    interpolation: Annotated[Literal["bilinear", "bicubic"], Meta(description="Resampling filter.")] = "bilinear"
    mean: Annotated[
        tuple[float, ...],
        Meta(min_length=3, max_length=3, description="Subtracted per RGB channel, after scaling to 0..1."),
    ] = (0.485, 0.456, 0.406)
    std: Annotated[
        tuple[Annotated[float, Meta(gt=0)], ...],
        Meta(min_length=3, max_length=3, description="Divides per RGB channel, after the mean was subtracted."),
    ] = (0.229, 0.224, 0.225)
    top_k: Annotated[int, Meta(ge=1, le=1000, description="How many labels an answer has.")] = 5
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"], Meta(description="Turns the model's outputs into scores.")
    ] = "softmax"
    labels: Annotated[
        list[Annotated[str, Meta(max_length=256)]],
        Meta(max_length=5000, description="Label of each class, in order. Empty: class numbers are given instead."),
    ] = []
    max_pixels: Annotated[
        int,
        Meta(
            ge=1024,
            le=1_000_000_000,
            description="A picture of more pixels, as it comes, gets 413. While it is decoded each takes 10 to 18 bytes.",
        ),
    ] = 50_000_000
    label_set: Annotated[
        Literal["none", "imagenet-1k"], Meta(description="A built-in list of labels, instead of labels.")
    ] = "none"


class TextEmbedding(Document, frozen=True, kw_only=True):
    """Options of task type text-embedding: text in, one vector out. The checkpoint is a folder with tokenizer.json."""

    pooling: Annotated[
        Literal["mean", "cls"],
        Meta(description="How token vectors become one: mean over real tokens, or the first token."),
    ] = "mean"
    normalize: Annotated[bool, Meta(description="Scale each vector to unit length.")] = True
    max_length_tokens: Annotated[int, Meta(ge=2, le=8192, description="Longer texts are cut to this many tokens.")] = (
        256
    )


class Speech(Document, frozen=True, kw_only=True):
    """Options of task type speech: audio in, speech segments out.

    The module maps a waveform `(rows, samples)` float32 to speech probabilities `(rows, windows)`, one for each
    `windowSamples` samples; the last window is padded with silence.
    """

    sample_rate_hertz: Annotated[
        int, Meta(ge=4000, le=192000, description="Rate the model expects; other rates are resampled to it.")
    ] = 16000
    window_samples: Annotated[int, Meta(ge=1, le=65536, description="Samples for each probability.")] = 512
    threshold: Annotated[float, Meta(ge=0, le=1, description="A probability from here on starts speech.")] = 0.5
    min_speech_milliseconds: Annotated[int, Meta(ge=0, le=60000, description="Shorter speech is dropped.")] = 250
    min_silence_milliseconds: Annotated[
        int, Meta(ge=0, le=60000, description="Shorter silence does not end speech.")
    ] = 100
    padding_milliseconds: Annotated[int, Meta(ge=0, le=10000, description="Added to both ends of a segment.")] = 30
    max_duration_seconds: Annotated[int, Meta(ge=1, le=3600, description="Longer recordings are refused.")] = 300


class Task(Document, frozen=True, kw_only=True):
    """What the endpoint does with a request beyond tensors; the options stand under the type's own name."""

    type: Annotated[
        Literal["tensor", "image-classification", "text-embedding", "speech"],
        Meta(description="tensor: tensors in and out. The others also take the medium itself as the request body."),
    ] = "tensor"
    image_classification: Annotated[
        ImageClassification | None, Meta(description="Only with type image-classification.")
    ] = None
    text_embedding: Annotated[TextEmbedding | None, Meta(description="Only with type text-embedding.")] = None
    speech: Annotated[Speech | None, Meta(description="Only with type speech.")] = None


class Padding(Document, frozen=True, kw_only=True):
    """Rows of different length share a batch: shorter ones are padded at the end of their second dimension.

    Used only once proven at warm-up: a row padded, in company, has the answer it has alone.
    """

    mask: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            max_length=128,
            description="Keyword argument of the module's forward that takes the mask: BOOL (rows, length), true on real "
            "positions, false on padding.",
        ),
    ]
    value: Annotated[float, Meta(description="What fills the padding, in every input of variable length.")] = 0.0


class Batching(Document, frozen=True, kw_only=True):
    """Requests that wait together are computed together."""

    max_size: Annotated[int, Meta(ge=1, le=4096, description="Most rows in one batch. 1 switches batching off.")] = 32
    max_delay_milliseconds: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="How long the oldest request may wait for company. 0 takes what is queued the moment the model is free.",
        ),
    ] = 0
    padding: Annotated[
        Padding | None,
        Meta(
            description="Lets requests of different length share a batch (task.type tensor; text-embedding pads by itself). "
            "Without it only equal shapes share one."
        ),
    ] = None


class Queue(Document, frozen=True, kw_only=True):
    """Requests that wait for the model."""

    max_rows: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Beyond this many waiting rows, 429 is answered.")
    ] = 1024
    max_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 40, description="Beyond this many bytes of waiting tensors, 429 is answered.")
    ] = 256 * 1024 * 1024


class Limits(Document, frozen=True, kw_only=True):
    """What one client may ask of the server; checked before anything of that size is allocated."""

    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="A longer request line or header field gets 400.")
    ] = 16384
    max_tensors: Annotated[int, Meta(ge=1, le=1024, description="Most input tensors in one request.")] = 32
    max_rank: Annotated[int, Meta(ge=1, le=16, description="Most dimensions of one tensor.")] = 9
    max_elements: Annotated[
        int, Meta(ge=1, le=1 << 32, description="Most elements in all tensors of one request, in any form.")
    ] = 16_777_216
    max_json_elements: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 28,
            description="Most elements in a JSON body: each costs some forty bytes while it is parsed. Larger tensors are sent "
            "in binary form.",
        ),
    ] = 2_097_152
    max_bytes_in_flight: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Most bytes that the requests of a process hold between their first byte and their answer: bodies being "
            "read, what waits to be decoded, decoded media, tensors. Beyond it 429 is answered, and 413 to a request that could "
            "never fit. 0: a quarter of the memory that is free once the model is loaded, shared by the processes, and at least "
            "the largest body that is taken.",
        ),
    ] = 0
    body_timeout_seconds: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="A client that has not sent its whole request by then gets 408. One that reads nothing of its answer for "
            "so long is cut off; it may read slowly.",
        ),
    ] = 30
    idle_timeout_seconds: Annotated[
        int, Meta(ge=1, le=86400, description="A connection without a request is closed after this time.")
    ] = 75


class Grpc(Document, frozen=True, kw_only=True):
    """Open Inference Protocol V2 over gRPC, beside HTTP, sharing its batches."""

    enabled: Annotated[bool, Meta(description="Serve gRPC on port 8081. Needs the extra [grpc] in the image.")] = False
    max_message_bytes: Annotated[
        int, Meta(ge=1024, le=(1 << 31) - 1, description="A larger message gets RESOURCE_EXHAUSTED.")
    ] = 64 * 1024 * 1024


class Telemetry(Document, frozen=True, kw_only=True):
    """Access log and traces. Metrics are always there, at /metrics."""

    access_log_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the requests that get a line in the log; answers of 500 and more always do.",
        ),
    ] = 0.01
    otlp_endpoint: Annotated[
        str,
        Meta(
            max_length=2048,
            pattern=r"^(https?://.+)?$",
            description="OpenTelemetry collector for traces over OTLP/HTTP, for example http://collector:4318. Empty: no "
            "traces. Needs the extra [tracing] in the image.",
        ),
    ] = ""
    trace_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of the requests that start a trace where the caller has not decided."),
    ] = 0.1


class Serving(Document, frozen=True, kw_only=True):
    """How the endpoint serves."""

    batching: Annotated[Batching, Meta(description="Requests that wait together are computed together.")] = Batching()
    queue: Annotated[Queue, Meta(description="Requests that wait for the model.")] = Queue()
    request_timeout_seconds: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="A request that has no answer by then gets 504. A client may ask for less, not for more.",
        ),
    ] = 30
    max_request_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="A larger request body gets 413.")] = (
        64 * 1024 * 1024
    )
    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="torch intra-op threads of each worker; 0 lets the start measure what the CPU quota is best spent on.",
        ),
    ] = 0
    workers: Annotated[
        int,
        Meta(ge=0, le=64, description="Batches computed at the same time in one process; 0 is measured at the start."),
    ] = 0
    processes: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Processes on the one port, weights shared; 0 is measured at the start: more than one only where HTTP "
            "costs more than the model.",
        ),
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="auto takes a GPU when the container has one.")
    ] = "auto"
    startup_timeout_seconds: Annotated[
        int, Meta(ge=10, le=86400, description="Time for fetch, load and warm-up before the start counts as failed.")
    ] = 900
    drain_timeout_seconds: Annotated[
        int, Meta(ge=1, le=3600, description="Time for requests in flight to finish when a replica stops.")
    ] = 30
    limits: Annotated[Limits, Meta(description="What one client may ask of the server.")] = Limits()
    grpc: Annotated[Grpc, Meta(description="Open Inference Protocol V2 over gRPC.")] = Grpc()
    telemetry: Annotated[Telemetry, Meta(description="Access log and traces.")] = Telemetry()


class Security(Document, frozen=True, kw_only=True):
    """What the checkpoint's owner allows."""

    allow_code_execution: Annotated[
        bool,
        Meta(
            description="Allow code that comes with the model (architecture.source). The operator must allow it as well."
        ),
    ] = False


class CodeFile(Document, frozen=True, kw_only=True):
    """Python source that defines the architecture: exactly one of the two is set."""

    inline: str | None = None
    path: str | None = None


class ServerConfig(Document, frozen=True, kw_only=True):
    """Everything a serving process is told."""

    name: str
    """Model name, as in every route."""
    checkpoint_folder: str
    """Folder with `receipt.json` and the file or folder it names."""
    checkpoint_format: CheckpointFormat = "auto"
    checkpoint_key: str = ""
    """Name under which the state_dict is nested in the file, dotted for more than one level; empty when it is not."""
    architecture: Architecture
    code: CodeFile | None = None
    task: Task = Task()
    signature: Signature | None = None
    serving: Serving = Serving()
    security: Security = Security()
    drain_delay_seconds: Annotated[int, Meta(ge=0, le=600)] = 0
    """Served on after SIGTERM, readiness off, so that the endpoint is withdrawn before requests are refused; 0 when local."""
    host: str = "0.0.0.0"
    port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT


class FetchConfig(Document, frozen=True, kw_only=True):
    """Everything a fetcher is told."""

    uri: str
    sha256: Sha256 | None = None
    destination: str
    """Folder the checkpoint and its receipt are put in: ServerConfig.checkpointFolder of the server beside it."""
    cache: str | None = None
    """Content-addressed folder kept between runs (`sha256/<hex>`); None: the destination itself holds the bytes."""
    credentials: str | None = None
    """Folder with one file per credential; None: the environment, as the sources' own tools read it."""


class Receipt(Document, frozen=True, kw_only=True):
    """What was fetched, written by the fetcher when all of it is verified and in place.

    sha256 is that of the file; for a folder it is that of the lines `<hex>  <relative path>\\n`, sorted by path
    (`cd folder && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`).
    """

    uri: str
    path: str
    """File or folder, relative to the folder of the receipt, or absolute where the bytes lie in a cache."""
    sha256: Sha256
    size_bytes: int
    files: int = 1
    fetch_seconds: float
    cached: bool = False


class Failure(Document, frozen=True, kw_only=True):
    """Why a fetcher or server ended, written to the termination log for the operator and for `torchmodel run`."""

    reason: str
    """CamelCase and stable: one of the constants below."""
    message: str
    """What is wrong, where, what was given, what is allowed."""
    next_step: str
    """What the reader should do about it."""


FETCH_FAILED = "FetchFailed"
CHECKSUM_MISMATCH = "ChecksumMismatch"
CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
ACCESS_DENIED = "AccessDenied"
CREDENTIALS_INVALID = "CredentialsInvalid"
STORAGE_FULL = "StorageFull"
CONFIG_INVALID = "ConfigInvalid"
CHECKPOINT_INVALID = "CheckpointInvalid"
ARCHITECTURE_INVALID = "ArchitectureInvalid"
CODE_NOT_ALLOWED = "CodeExecutionNotAllowed"
STATE_DICT_MISMATCH = "StateDictMismatch"
WARM_UP_FAILED = "WarmUpFailed"
DEVICE_UNAVAILABLE = "DeviceUnavailable"
OUT_OF_MEMORY = "OutOfMemory"
MODEL_BROKEN = "ModelBroken"
"""The module failed for good while it served."""
INTERNAL_ERROR = "InternalError"

LoadSafety = Literal["weights-only", "code"]
"""weights-only: nothing in the checkpoint or beside it can run. code: the model brought code that was allowed to run."""


class ColdStart(Document, frozen=True, kw_only=True):
    """Where the time of a start went, in seconds; the fetch is the fetcher's own."""

    fetch_seconds: Annotated[float, Meta(description="Fetching and verifying the checkpoint.")]
    import_seconds: Annotated[float, Meta(description="Importing torch and the model's class.")]
    load_seconds: Annotated[float, Meta(description="Building the module and loading its weights.")]
    warm_up_seconds: Annotated[float, Meta(description="Warm-up and the proof that batching changes no answer.")]


class BatchProof(Document, frozen=True, kw_only=True):
    """One comparison of warm-up: rows alone against the same rows in a batch of this size."""

    rows: int
    padded: bool = False
    max_difference: float
    tolerance: float
    """What was allowed where the difference was greatest."""


class BatchingReport(Document, frozen=True, kw_only=True):
    """Whether requests share batches, and why not."""

    enabled: bool
    max_size: int
    reason: str
    padding: bool = False
    """Rows of different length share batches."""
    proofs: list[BatchProof] = []


class ParallelismReport(Document, frozen=True, kw_only=True):
    """What the CPU quota is spent on, and why."""

    processes: int = 1
    workers: int = 1
    threads: int = 1
    reason: str = ""


class ModelReport(Document, frozen=True, kw_only=True):
    """`parameters` of GET /v2/models/{name}: what is loaded and how it got there."""

    sha256: Sha256
    uri: str
    size_bytes: int
    format: str
    load_safety: LoadSafety
    device: str
    cold_start: ColdStart
    batching: BatchingReport
    parallelism: ParallelismReport = ParallelismReport()
