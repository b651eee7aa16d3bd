"""Tiny models that between them take and give every datatype, served at the same time for the real clients' tests.

`flip` turns each row of each of its thirteen tensors around, so that a lost byte, a swapped name or a wrong order shows
(`typed`, for gRPC: without FP16 and BF16, which have no typed contents there and so force those of all others to be raw);
`mlp` is an ordinary model of one input; `text` takes BYTES and gives FP32; `colour` takes BYTES that are no text and gives
BYTES, FP32 and INT64. What they should answer is computed here by torch, in the test's own process.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from testkit.models import mlp_config, save_mlp, write_receipt
from testkit.runtime_process import RuntimeProcess
from tokenizers import Tokenizer, models, pre_tokenizers
from torchmodel_runtime.config import (
    Architecture,
    CodeFile,
    Grpc,
    ImageClassification,
    Security,
    ServerConfig,
    Serving,
    Signature,
    Task,
    TensorSpec,
    TextEmbedding,
)

DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}

CODE = '''
import torch


class Flip(torch.nn.Module):
    """Turns the rows of all its inputs around; its parameter is no float, which would set the width of all."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

    def forward(self, *inputs):
        # unbind and stack: torch has no flip for unsigned integers of more than a byte
        return tuple(torch.stack(tensor.unbind(1)[::-1], 1) for tensor in inputs)


class Words(torch.nn.Module):
    """A vector for each word, whatever stands beside it."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.zeros(8, 4))

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.vectors[input_ids]


class Colour(torch.nn.Module):
    """How much there is of red, green and blue."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, pixels):
        return pixels.mean((2, 3)) * self.weight
'''

VOCABULARY = ["[PAD]", "[UNK]", "a", "dog", "runs", "Ein", "Hünd", "."]
TEXTS = ["a dog runs .", "Ein Hünd", "who ?"]
LABELS = ["red", "green", "bläulich"]
ROW = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0, 1.0, -2.0, 0.75]


def make_tensors() -> dict[str, torch.Tensor]:
    """Two rows of each datatype by its name, its least and its greatest number among them where it has such."""
    made = {}
    for name, dtype in DTYPES.items():
        if dtype == torch.bool:
            made[name] = torch.tensor([[True, False, True], [False, True, True]])
        elif dtype.is_floating_point:
            limit = torch.finfo(dtype)
            made[name] = torch.tensor([[limit.max, limit.tiny, 1 / 3], [0.0, -1.5, limit.min]], dtype=torch.float64).to(
                dtype
            )
        else:
            whole = torch.iinfo(dtype)
            made[name] = torch.tensor([[whole.min, 1, 2], [3, 4, whole.max]], dtype=dtype)
    return made


def describe(tensor: torch.Tensor, datatype: str) -> dict[str, Any]:
    """A tensor as the client scripts read it: exact, since every float here is a JSON number's double."""
    return {"datatype": datatype, "shape": list(tensor.shape), "values": tensor.flatten().tolist()}


def flipped(datatype: str) -> dict[str, Any]:
    """What `flip` answers to `make_tensors`, by torch here, as the client scripts tell of arrays."""
    dtype = str(DTYPES[datatype]).removeprefix("torch.")
    turned = torch.stack(make_tensors()[datatype].unbind(1)[::-1], 1)
    return {"dtype": dtype, "shape": list(turned.shape), "values": turned.flatten().tolist()}


def make_picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [make_picture((200, 100, 0)), make_picture((0, 50, 250))]
CLASSES = [["red", "green"], ["bläulich", "green"]]
SCORES = [[200 / 255, 100 / 255], [250 / 255, 50 / 255]]


FORMS = ("binary", "json")
CASES = [
    {"name": f"{datatype} sent as {sent}, asked for as {asked}", "datatype": datatype, "sent": sent, "asked": asked}
    for datatype in DTYPES
    for sent in FORMS
    for asked in FORMS
]
"""Each datatype in each form, both ways: one request to `flip` each, whose other inputs are bytes."""

TYPED = [datatype for datatype in DTYPES if datatype not in ("FP16", "BF16")]
"""Of `typed`."""


def make_order(servers: dict[str, str]) -> dict[str, Any]:
    """What every client script is given to ask with: where, and the inputs of the models."""
    return {
        "servers": servers,
        "cases": CASES,
        "tensors": {name: describe(tensor, name) for name, tensor in make_tensors().items()},
        "row": ROW,
        "texts": TEXTS,
        "pictures": [base64.b64encode(picture).decode() for picture in PICTURES],
    }


class ClientServers:
    """All of them, serving; and what torch says they should answer."""

    def __init__(self, servers: dict[str, RuntimeProcess], mlp: torch.nn.Module, vectors: torch.Tensor) -> None:
        self._servers = servers
        self._mlp = mlp
        self._vectors = vectors

    def http(self) -> dict[str, str]:
        """host:port by model."""
        return {name: f"127.0.0.1:{server.port}" for name, server in self._servers.items()}

    def grpc(self) -> dict[str, str]:
        """host:port by model."""
        return {name: f"127.0.0.1:{server.grpc_port}" for name, server in self._servers.items()}

    def expected_mlp(self, rows: list[list[float]]) -> list[list[float]]:
        """What the module says to rows."""
        with torch.inference_mode():
            return self._mlp(torch.tensor(rows)).tolist()  # type: ignore[no-any-return]

    def expected_vectors(self) -> list[list[float]]:
        """TEXTS: the mean of their words' vectors, of unit length."""
        found = []
        for text in TEXTS:
            ids = [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.split()]
            found.append(torch.nn.functional.normalize(self._vectors[ids].mean(dim=0), dim=0).tolist())
        return found


@contextmanager
def serve_for_clients(folder: Path, *, grpc: bool = False) -> Iterator[ClientServers]:
    """Start them at once, and end them."""
    mlp = save_mlp(_made(folder / "mlp"))
    vectors = _save_words(_made(folder / "text"))
    serving = Serving(grpc=Grpc(enabled=grpc))
    configs = {
        "mlp": mlp_config(folder / "mlp", serving=serving),
        "flip": _flip_config("flip", _made(folder / "flip"), list(DTYPES), serving),
        "text": _config(
            "text", folder / "text", "Words", serving, task=Task(type="text-embedding", text_embedding=TextEmbedding())
        ),
        "colour": _colour_config(_made(folder / "colour"), serving),
    }
    if grpc:
        configs["typed"] = _flip_config("typed", _made(folder / "typed"), TYPED, serving)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(RuntimeProcess(config)) for name, config in configs.items()}
        for server in servers.values():
            server.wait_ready(180)  # all start at once, beside whatever else the machine does
        yield ClientServers(servers, mlp, vectors)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _config(name: str, folder: Path, module: str, serving: Serving, **settings: Any) -> ServerConfig:
    return ServerConfig(
        name=name,
        checkpoint_folder=str(folder),
        architecture=Architecture(entrypoint=f"model:{module}"),
        code=CodeFile(inline=CODE),
        security=Security(allow_code_execution=True),
        serving=serving,
        **settings,
    )


def _flip_config(name: str, folder: Path, datatypes: list[str], serving: Serving) -> ServerConfig:
    save_file({"nothing": torch.zeros(1, dtype=torch.int64)}, folder / "flip.safetensors")
    write_receipt(folder, "flip.safetensors")
    inputs = [TensorSpec(name=each.lower(), datatype=each, shape=[-1, 3]) for each in datatypes]  # type: ignore[arg-type]
    outputs = [TensorSpec(name=f"{spec.name}_flipped", datatype=spec.datatype, shape=[-1, 3]) for spec in inputs]
    return _config(name, folder, "Flip", serving, signature=Signature(inputs=inputs, outputs=outputs))


def _save_words(folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    vectors = torch.randn(8, 4)
    checkpoint = _made(folder / "words")
    save_file({"vectors": vectors}, checkpoint / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    write_receipt(folder, "words")
    return vectors


def _colour_config(folder: Path, serving: Serving) -> ServerConfig:
    save_file({"weight": torch.ones(3)}, folder / "colour.safetensors")
    write_receipt(folder, "colour.safetensors")
    options = ImageClassification(
        resize_pixels=8, crop_pixels=8, mean=(0.0,) * 3, std=(1.0,) * 3, top_k=2, activation="none", labels=LABELS
    )
    task = Task(type="image-classification", image_classification=options)
    return _config("colour", folder, "Colour", serving, task=task)
