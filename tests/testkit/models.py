"""Tiny models, made in the test: folders with a checkpoint and its receipt, as the fetcher leaves them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torchmodel_runtime.config import (
    RECEIPT_FILE,
    Architecture,
    CodeFile,
    Receipt,
    Security,
    ServerConfig,
    Signature,
    TensorSpec,
)

MLP_CODE = '''
import torch


class Mlp(torch.nn.Module):
    """Ten features in, one number out; a row of which the first feature is 666 is poison."""

    def __init__(self, features: int = 10, delay_seconds: float = 0.0):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(features, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        self.delay_seconds = delay_seconds

    def forward(self, x):
        if self.delay_seconds:
            import time
            time.sleep(self.delay_seconds)
        if (x[:, 0] == 666).any():
            raise ValueError("a poisoned row: secret detail")
        return self.layers(x)
'''


def write_receipt(folder: Path, path: str | Path, **changes: Any) -> Path:
    """The receipt of a checkpoint in `folder`; path is the file's or folder's, relative to it or absolute."""
    target = folder / path
    files = sorted(file for file in target.rglob("*") if file.is_file()) if target.is_dir() else [target]
    receipt = Receipt(
        uri=f"file://{target}",
        path=str(path),
        sha256=hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        size_bytes=sum(file.stat().st_size for file in files),
        files=len(files),
        fetch_seconds=0.25,
    )
    (folder / RECEIPT_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(receipt, **changes)))
    return folder


def vector_signature(features: int = 10, outputs: int = 1) -> Signature:
    """x FP32 (-1, features) to y FP32 (-1, outputs)."""
    return Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, features])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, outputs])],
    )


def make_linear(features: int = 10, outputs: int = 1, seed: int = 0) -> torch.nn.Linear:
    """A torch.nn.Linear with fixed weights."""
    torch.manual_seed(seed)
    return torch.nn.Linear(features, outputs).eval()


def save_linear(folder: Path, features: int = 10, outputs: int = 1, seed: int = 0) -> torch.nn.Linear:
    """A Linear saved as safetensors with its receipt; the module itself for comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    module = make_linear(features, outputs, seed)
    save_file(dict(module.state_dict()), folder / "linear.safetensors")
    write_receipt(folder, "linear.safetensors")
    return module


def linear_config(
    folder: Path, name: str = "linear", features: int = 10, outputs: int = 1, **changes: Any
) -> ServerConfig:
    """Serve `save_linear`'s checkpoint."""
    settings: dict[str, Any] = {
        "name": name,
        "checkpoint_folder": str(folder),
        "architecture": Architecture(
            entrypoint="torch.nn:Linear", kwargs={"in_features": features, "out_features": outputs}
        ),
        "signature": vector_signature(features, outputs),
        "host": "127.0.0.1",
    }
    return ServerConfig(**{**settings, **changes})


def save_mlp(folder: Path, features: int = 10, seed: int = 0) -> torch.nn.Module:
    """The model of MLP_CODE saved as a zip state_dict; its layers for comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(features, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
    torch.save({f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "mlp.pth")
    write_receipt(folder, "mlp.pth")
    return layers


def mlp_config(folder: Path, name: str = "mlp", kwargs: dict[str, Any] | None = None, **changes: Any) -> ServerConfig:
    """Serve `save_mlp`'s checkpoint with its code inline; kwargs delay_seconds makes it slow."""
    settings: dict[str, Any] = {
        "name": name,
        "checkpoint_folder": str(folder),
        "architecture": Architecture(entrypoint="model:Mlp", kwargs=kwargs or {}),
        "code": CodeFile(inline=MLP_CODE),
        "security": Security(allow_code_execution=True),
        "signature": vector_signature(),
        "host": "127.0.0.1",
    }
    return ServerConfig(**{**settings, **changes})
