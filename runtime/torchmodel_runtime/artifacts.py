"""Which file is to be loaded, and whether its container is sound: everything about a checkpoint short of its tensors.

`startup.py` asks here before torch touches a byte. A format is told by magic bytes, never by a file's name. Knows no torch.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from torchmodel_runtime.config import (
    CHECKPOINT_INVALID,
    CHECKPOINT_NOT_FOUND,
    EXIT_RETRYABLE,
    RECEIPT_FILE,
    CheckpointFormat,
    Receipt,
)
from torchmodel_runtime.errors import StartError

FileFormat = Literal["safetensors", "state-dict"]

MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
"""safetensors/src/tensor.rs MAX_HEADER_SIZE."""
MAX_PICKLE_BYTES = 64 * 1024 * 1024
"""A data.pkl holds names and sizes; that of a model of 7 thousand million parameters is under 1 MB."""
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of what torch.save wrote before 1.6: torch/serialization.py MAGIC_NUMBER, pickled."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILE = "model.safetensors.index.json"

RESAVE = (
    "Save it again: python -c \"import torch; torch.save(torch.load('{name}', map_location='cpu', weights_only=True), "
    "'new.pth')\" and deploy new.pth."
)


@dataclass(frozen=True)
class Checkpoint:
    """What is to be loaded: weight files of one format, and the folder with what lies beside them."""

    receipt: Receipt
    folder: Path
    files: tuple[Path, ...]
    format: FileFormat
    shards: dict[str, str] | None = None
    """Tensor name to file name, where an index says so."""


def locate(folder: Path, wanted: CheckpointFormat) -> Checkpoint:
    """The verified checkpoint under a folder with a receipt. Raises StartError for all that cannot be loaded."""
    receipt = _read_receipt(folder)
    path = folder / receipt.path
    if not path.exists():
        raise StartError(
            CHECKPOINT_NOT_FOUND,
            f"{RECEIPT_FILE} names {path}, which does not exist",
            "Fetch the checkpoint again; the folder may have been cleaned.",
            EXIT_RETRYABLE,
        )
    shards = None
    if path.is_dir():
        files, shards = _find_weights(path)
    else:
        files = (path,)
    formats = {file: _sniff(file) for file in files}
    found = formats[files[0]]
    if wanted not in ("auto", found):
        raise StartError(
            CHECKPOINT_INVALID,
            f"{files[0].name} is {found} by its content, checkpoint.format says {wanted}",
            f"Set spec.checkpoint.format: {found}, or leave it out.",
        )
    return Checkpoint(receipt, path if path.is_dir() else path.parent, files, found, shards)


def _read_receipt(folder: Path) -> Receipt:
    path = folder / RECEIPT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Receipt)
    except FileNotFoundError:
        raise StartError(
            CHECKPOINT_NOT_FOUND,
            f"{path} does not exist: no checkpoint was fetched into {folder}",
            "Run the fetcher first (python -m torchmodel_runtime.fetch), or correct checkpointFolder.",
            EXIT_RETRYABLE,
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise StartError(
            CHECKPOINT_INVALID, f"{path} cannot be read: {error}", "Fetch the checkpoint again.", EXIT_RETRYABLE
        ) from error


def _find_weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files of a folder as Hugging Face lays it out, or its only checkpoint."""
    if (folder / INDEX_FILE).is_file():
        shards = _read_index(folder)
        return tuple(folder / name for name in sorted(set(shards.values()))), shards
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return (folder / name,), None
    single = sorted(path for pattern in ("*.safetensors", "*.pth", "*.pt") for path in folder.glob(pattern))
    if len(single) == 1:
        return (single[0],), None
    names = [path.name for path in single] or sorted(path.name for path in folder.iterdir())[:20]
    raise StartError(
        CHECKPOINT_INVALID,
        f"the folder holds {'several checkpoints' if single else 'no checkpoint'}: {names}; "
        f"looked for {INDEX_FILE}, {', '.join(WEIGHT_FILES)}, or one single *.safetensors, *.pth, *.pt",
        "Point checkpoint.uri at the one file that is meant, or at a folder with one.",
    )


def _read_index(folder: Path) -> dict[str, str]:
    """`weight_map` of a sharded checkpoint; each value must be the bare name of a file in the folder."""
    try:
        shards: dict[str, str] = msgspec.convert(
            json.loads((folder / INDEX_FILE).read_bytes())["weight_map"], dict[str, str]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(f"{INDEX_FILE} cannot be read: {error!r}", "Save the model again by save_pretrained.") from error
    if not shards:
        raise _invalid(f"{INDEX_FILE}: weight_map is empty", "Save the model again by save_pretrained.")
    for tensor, name in shards.items():
        if Path(name).name != name or name in ("", "..") or "\\" in name:
            raise _invalid(
                f"{INDEX_FILE}: weight_map[{tensor!r}] is {name!r}, must be the bare name of a file beside it",
                "Save the model again by save_pretrained; do not trust the source of this file.",
            )
        if not (folder / name).is_file():
            raise _invalid(f"{INDEX_FILE} names {name!r}, which is not in the folder", "Upload all shards.")
    return shards


def _sniff(path: Path) -> FileFormat:
    """The format by the file's first bytes; its container is checked on the way."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head[:2] == b"PK":
        _check_zip(path, size_bytes)
        return "state-dict"
    if len(head) >= 9 and head[8:9] == b"{":
        header_bytes = int.from_bytes(head[:8], "little")
        if header_bytes > min(MAX_SAFETENSORS_HEADER_BYTES, size_bytes - 8):
            raise _invalid(
                f"{path.name}: the safetensors header claims {header_bytes} bytes of a file of {size_bytes}",
                "The file is cut short or damaged: upload it again.",
            )
        return "safetensors"
    if head == LEGACY_MAGIC:
        return "state-dict"
    raise _refuse(path, head, size_bytes)


def _refuse(path: Path, head: bytes, size_bytes: int) -> StartError:
    """Why a file of no accepted format is refused, as exactly as its first bytes allow."""
    if size_bytes == 0:
        return _invalid(f"{path.name} is empty", "Upload it again.")
    if head[:1] == b"\x80":
        return _invalid(
            f"{path.name} is a pickle that torch.save did not write; only files of torch.save and safetensors are loaded",
            "Save the weights alone: torch.save(model.state_dict(), 'weights.pth').",
        )
    if head.startswith(b"version https:/"):
        return _invalid(f"{path.name} is a Git LFS pointer, not the file itself", "Upload what `git lfs pull` gives.")
    if head.lstrip()[:1] in (b"<", b"{"):
        return _invalid(
            f"{path.name} is a text document beginning with {head!r}, perhaps an error page", "Check checkpoint.uri."
        )
    if head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar":
        return _invalid(
            f"{path.name} is an archive; only safetensors and zip files are loaded", "Upload what is inside."
        )
    return _invalid(
        f"{path.name} begins with {head[:8].hex(' ')}: neither safetensors nor a file of torch.save",
        "Save the weights by safetensors.torch.save_file(model.state_dict(), ...) or torch.save(model.state_dict(), ...).",
    )


def _check_zip(path: Path, size_bytes: int) -> None:
    """A zip as torch.save writes it: entries stored, once each, relative, not larger than the file. Reads no content.

    torch.load inflates compressed entries, 825-fold in one try, and the reader in C++ and the one in Python can differ on
    doubled names; so what torch.save never writes is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise _invalid(
            f"{path.name}: the zip cannot be read: {error}", "The file is cut short or damaged: upload it again."
        ) from error
    names = [entry.filename for entry in entries]
    resave = RESAVE.format(name=path.name)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _invalid(f"{path.name}: entry {entry.filename!r} is compressed, torch.save stores entries", resave)
        if entry.filename.startswith("/") or "\\" in entry.filename or ".." in entry.filename.split("/"):
            raise _invalid(f"{path.name}: entry {entry.filename!r} points outside the archive", resave)
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled:
        raise _invalid(f"{path.name}: entries appear twice: {doubled[:5]}", resave)
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > size_bytes:
        raise _invalid(f"{path.name}: entries claim {total_bytes} bytes of a file of {size_bytes}", resave)
    _check_zip_kind(path, {name.split("/", 1)[-1]: entry.file_size for name, entry in zip(names, entries, strict=True)})


def _check_zip_kind(path: Path, sizes: dict[str, int]) -> None:
    """A state_dict has data.pkl and none of what programs have. Keys are names without the archive's top folder."""
    if "constants.pkl" in sizes:
        raise _invalid(
            f"{path.name} is a TorchScript program, which can run code and is not loaded",
            "Deploy its weights: torch.save(torch.jit.load(file).state_dict(), 'weights.pth'), with spec.architecture.",
        )
    if (
        any(name.startswith(("models/", "archive_format")) for name in sizes)
        or "serialized_exported_program.json" in sizes
    ):
        raise _invalid(
            f"{path.name} is an exported program (.pt2), which can run code and is not loaded",
            "Deploy its weights: torch.save(torch.export.load(file).state_dict, 'weights.pth'), with spec.architecture.",
        )
    if "data.pkl" not in sizes:
        raise _invalid(
            f"{path.name} is a zip without data.pkl, not a file of torch.save; it holds {sorted(sizes)[:5]}",
            "Upload the checkpoint itself, not an archive of it.",
        )
    if sizes["data.pkl"] > MAX_PICKLE_BYTES:
        raise _invalid(
            f"{path.name}: data.pkl has {sizes['data.pkl']} bytes, at most {MAX_PICKLE_BYTES} are read",
            RESAVE.format(name=path.name),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside the weights, such as config.json; StartError when it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise _invalid(f"{path.name} cannot be read: {error}", "Save the model again by save_pretrained.") from error


def _invalid(message: str, next_step: str) -> StartError:
    return StartError(CHECKPOINT_INVALID, message, next_step)
