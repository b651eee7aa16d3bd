"""Tiny models of every task, made in the test: no package, no download, loaded in a moment.

`serve_*` give the configuration of one each; the folder is filled with a checkpoint and its receipt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from testkit.models import write_receipt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from torchmodel_runtime.config import (
    Architecture,
    CodeFile,
    ImageClassification,
    Security,
    ServerConfig,
    Serving,
    Signature,
    Speech,
    Task,
    TensorSpec,
    TextEmbedding,
)

CODE = '''
import torch


class Echo(torch.nn.Module):
    """Gives back what it gets; its one parameter is no float, which would set the width of all."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

    def forward(self, *inputs):
        return tuple(tensor.clone() for tensor in inputs)


class Colours(torch.nn.Module):
    """Four scores by the mean colour."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 4)

    def forward(self, images):
        return self.head(images.mean(dim=(2, 3)))


class Words(torch.nn.Module):
    """A vector for each token."""

    def __init__(self, words, width=8):
        super().__init__()
        self.table = torch.nn.Embedding(words, width)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids) * attention_mask[..., None]


class Loudness(torch.nn.Module):
    """A probability for each 512 samples: how loud they are."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, waveform):
        windows = waveform.reshape(waveform.shape[0], -1, 512)
        return torch.tanh(self.gain * windows.abs().mean(dim=2))
'''

WORDS = [
    "[PAD]",
    "[UNK]",
    "the",
    "a",
    "dog",
    "cat",
    "runs",
    "over",
    "meadow",
    "word",
    *(f"##{letter}" for letter in "abcdefghij"),
]

ECHOED = (
    TensorSpec(name="ids", datatype="INT64", shape=[-1, -1]),
    TensorSpec(name="flags", datatype="BOOL", shape=[-1, 3]),
    TensorSpec(name="half", datatype="FP16", shape=[-1, 2]),
    TensorSpec(name="byte", datatype="UINT8", shape=[-1, 2]),
)
"""Inputs and outputs of `serve_echo`."""


def serve_echo(folder: Path, **changes: Any) -> ServerConfig:
    """Four inputs of four datatypes, given back."""
    settings: dict[str, Any] = {"signature": Signature(inputs=list(ECHOED), outputs=list(ECHOED))}
    return _serve(folder, "echo", "Echo", **{**settings, **changes})


def serve_images(folder: Path, **changes: Any) -> ServerConfig:
    """Pictures to four labels."""
    options = ImageClassification(labels=["red", "green", "blue", "grey"], top_k=2, resize_pixels=32, crop_pixels=32)
    return _serve(
        folder, "pictures", "Colours", task=Task(type="image-classification", image_classification=options), **changes
    )


def serve_texts(folder: Path, **changes: Any) -> ServerConfig:
    """Texts to vectors of eight numbers."""
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    task = Task(type="text-embedding", text_embedding=TextEmbedding(max_length_tokens=32))
    return _serve(folder, "texts", "Words", {"words": len(WORDS)}, task=task, **changes)


def serve_speech(folder: Path, **changes: Any) -> ServerConfig:
    """Recordings of at most five seconds to the stretches that are loud."""
    return _serve(
        folder, "speech", "Loudness", task=Task(type="speech", speech=Speech(max_duration_seconds=5)), **changes
    )


def _serve(
    folder: Path, name: str, class_name: str, kwargs: dict[str, Any] | None = None, **settings: Any
) -> ServerConfig:
    """Write the seeded weights of one of CODE's classes; serve them in one process, so that a test knows whom it asks."""
    folder.mkdir(parents=True, exist_ok=True)
    scope: dict[str, Any] = {}
    exec(CODE, scope)  # noqa: S102 - the text above
    torch.manual_seed(0)
    torch.save(scope[class_name](**(kwargs or {})).state_dict(), folder / f"{name}.pth")
    write_receipt(folder, f"{name}.pth")
    return ServerConfig(
        **{
            "name": name,
            "checkpoint_folder": str(folder),
            "architecture": Architecture(entrypoint=f"model:{class_name}", kwargs=kwargs or {}),
            "code": CodeFile(inline=CODE),
            "security": Security(allow_code_execution=True),
            "serving": Serving(processes=1, workers=1, threads=1),
            "host": "127.0.0.1",
            **settings,
        }
    )
