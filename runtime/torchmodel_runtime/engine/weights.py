"""The checkpoint's tensors into the module: read without running anything, compare, assign without copying.

The module is built on the meta device, so its own initialisation costs nothing; the file is mapped, so its pages are read
when they are used and shared between processes. What no checkpoint holds (non-persistent buffers) needs a second, real build.
Called by `startup.py` in the engine's thread.
"""

from __future__ import annotations

import difflib
import pickle
import zipfile
from collections.abc import Callable, Iterable
from itertools import chain

import safetensors
import safetensors.torch
import torch

from torchmodel_runtime.artifacts import RESAVE, Checkpoint
from torchmodel_runtime.config import CHECKPOINT_INVALID, STATE_DICT_MISMATCH
from torchmodel_runtime.errors import StartError

StateDict = dict[str, torch.Tensor]

SHOWN = 10
"""Names listed of each kind of mismatch; the count tells the rest."""


def read_state_dict(checkpoint: Checkpoint, key: str) -> StateDict:
    """Names to tensors, mapped from the file on the CPU. Raises StartError for what is not a state_dict of plain tensors."""
    if checkpoint.format == "safetensors":
        return _read_safetensors(checkpoint, key)
    state: StateDict = {}
    for file in checkpoint.files:
        try:
            # files from before torch 1.6 are no zip and cannot be mapped; weights_only holds for both
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            raise _refuse_pickle(str(file), error) from error
        except Exception as error:  # torch.load raises many kinds for damaged files
            raise _invalid(
                f"{file.name} cannot be read: {type(error).__name__}: {error}",
                f"The file may be cut short or damaged: upload it again. {RESAVE.format(name=file.name)}",
            ) from error
        state.update(_select(loaded, key, file.name))
    size_bytes = sum(file.stat().st_size for file in checkpoint.files)
    for name, tensor in state.items():
        _check_plain(name, tensor, size_bytes)
    return state


def _read_safetensors(checkpoint: Checkpoint, key: str) -> StateDict:
    if key:
        raise _invalid(
            f"checkpoint.key is {key!r}, but a safetensors file nests nothing",
            "Remove spec.checkpoint.key.",
        )
    state: StateDict = {}
    for file in checkpoint.files:
        try:
            tensors = safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            raise _invalid(
                f"{file.name} cannot be read: {error}", "The file is cut short or damaged: upload it again."
            ) from error
        for name in tensors:
            if checkpoint.shards is not None and checkpoint.shards.get(name) != file.name:
                raise _invalid(
                    f"{file.name} holds {name!r}, which the index puts in {checkpoint.shards.get(name)!r}",
                    "Save the model again by save_pretrained; shards of two versions may be mixed.",
                )
        state.update(tensors)
    absent = sorted(set(checkpoint.shards or ()) - set(state))
    if absent:
        raise _invalid(
            f"the index names tensors that no shard holds: {_shorten(absent)}", "Upload all shards of one version."
        )
    return state


def _refuse_pickle(path: str, error: Exception) -> StartError:
    """weights_only refused the pickle: name the globals it asks for, found without running anything."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - only to explain; the first error is the one that counts
        names = []
    if names:
        return _invalid(
            f"the file is more than tensors: loading it would call {_shorten(names)}, so it is refused",
            "Where the class is at hand and the file is trusted, save the weights alone: "
            "torch.save(model.state_dict(), 'weights.pth').",
        )
    return _invalid(
        f"the pickle in the file is refused: {error}", "Save the weights again: torch.save(model.state_dict(), ...)."
    )


def _select(loaded: object, key: str, name: str) -> StateDict:
    """The state_dict itself, or the one under a dotted name."""
    found = loaded
    for depth, step in enumerate(key.split(".") if key else ()):
        if not isinstance(found, dict) or step not in found:
            where = ".".join(key.split(".")[:depth]) or "the file"
            keys = [str(each) for each in found] if isinstance(found, dict) else []
            close = difflib.get_close_matches(step, keys, n=1)
            raise _invalid(
                f"checkpoint.key {key!r}: {where} has no {step!r}; it has {_shorten(keys)}",
                f"Set spec.checkpoint.key: {close[0]}" if close else _key_advice(loaded),
            )
        found = found[step]
    if _is_state_dict(found):
        return dict(found)  # type: ignore[call-overload, no-any-return]
    what = f"checkpoint.key {key!r}" if key else name
    if isinstance(found, torch.nn.Module):
        raise _invalid(f"{what} is a whole module", "Save the weights alone: torch.save(model.state_dict(), ...).")
    if not isinstance(found, dict):
        raise _invalid(f"{what} is {type(found).__name__}, must be names to tensors", _key_advice(loaded))
    odd = [str(each) for each, value in found.items() if not isinstance(value, torch.Tensor)]
    raise _invalid(f"{what} nests more than tensors: {_shorten(odd)} are none", _key_advice(loaded))


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def _key_advice(loaded: object) -> str:
    """Which nested value looks like the state_dict."""
    if _is_state_dict(loaded):
        return "Remove spec.checkpoint.key: the file is itself the state_dict."
    candidates = list(_find_state_dicts(loaded))
    if len(candidates) == 1:
        return f"Add spec.checkpoint.key: {candidates[0]}: the file nests the weights there."
    if candidates:
        return f"Set spec.checkpoint.key to one of {_shorten(candidates)}: each holds names to tensors."
    return "Save the weights alone: torch.save(model.state_dict(), ...)."


def _find_state_dicts(value: object, prefix: str = "", depth: int = 0) -> Iterable[str]:
    """Dotted names of nested state_dicts, three levels deep at most (a guess; Lightning and fairseq nest one)."""
    if not isinstance(value, dict) or depth > 3:
        return
    for name, nested in value.items():
        path = f"{prefix}{name}"
        if _is_state_dict(nested):
            yield path
        else:
            yield from _find_state_dicts(nested, path + ".", depth + 1)


def _check_plain(name: str, tensor: torch.Tensor, size_bytes: int) -> None:
    """A dense tensor that is not larger than the file: strides of 0 make a terabyte of a kilobyte."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise _invalid(f"{name} is {tensor.layout}, only dense tensors are loaded", "Save dense weights.")
    if tensor.numel() * tensor.element_size() > size_bytes:
        raise _invalid(
            f"{name} claims shape {list(tensor.shape)} of {tensor.dtype}, more than the whole file holds",
            "Save it as a real tensor: tensor.contiguous(). Do not trust the source of this file.",
        )


def load_module(build: Callable[[], torch.nn.Module], state: StateDict) -> torch.nn.Module:
    """A module whose every tensor is the checkpoint's. Raises StartError STATE_DICT_MISMATCH with names and shapes."""
    try:
        with torch.device("meta"):
            module = build()
    except StartError:
        # some constructors compute with their weights, which meta tensors cannot; what is really wrong shows again
        module = build()
    complete = _match(module, state)
    _assign(module, complete)
    if any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers())):
        module = build()
        _assign(module, complete)
    return module.eval().requires_grad_(False)


def _match(module: torch.nn.Module, state: StateDict) -> StateDict:
    """The checkpoint's tensors under all of the module's names, or every difference in one message."""
    expected = dict(module.state_dict(keep_vars=True))
    buffers = dict(module.named_buffers())
    complete = dict(state)
    _fill_tied(expected, complete)
    for name in expected.keys() - complete.keys():
        if name.endswith("num_batches_tracked"):  # absent from files older than PyTorch 0.4.1; not used by eval()
            complete[name] = torch.zeros((), dtype=torch.long)
    known = {**buffers, **expected}
    missing = [name for name in expected if name not in complete]
    unexpected = [name for name in state if name not in known]
    shapes, dtypes = [], []
    for name, tensor in complete.items():
        wanted = known.get(name)
        if wanted is None:
            continue
        if wanted.shape != tensor.shape:
            shapes.append(f"{name}: expected {list(wanted.shape)}, found {list(tensor.shape)}")
        elif _kind(wanted.dtype) != _kind(tensor.dtype):
            dtypes.append(f"{name}: expected {_short(wanted.dtype)}, found {_short(tensor.dtype)}")
    if missing or unexpected or shapes or dtypes:
        raise _mismatch(missing, unexpected, shapes, dtypes)
    return complete


def _fill_tied(expected: StateDict, state: StateDict) -> None:
    """Give a tied parameter its twin's tensor: safetensors keeps only one of the names."""
    names_by_tensor: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names_by_tensor.setdefault(id(tensor), []).append(name)
    for names in names_by_tensor.values():
        held = next((name for name in names if name in state), None)
        for name in names:
            if held is not None and name not in state:
                state[name] = state[held]


def _mismatch(missing: list[str], unexpected: list[str], shapes: list[str], dtypes: list[str]) -> StartError:
    parts = [
        f"{len(items)} {what}: {_shorten(items)}"
        for what, items in (
            ("missing in the checkpoint", missing),
            ("unexpected in the checkpoint", unexpected),
            ("of another shape", shapes),
            ("of another dtype", dtypes),
        )
        if items
    ]
    message = "the checkpoint does not fit the architecture. " + ". ".join(parts) + "."
    return StartError(STATE_DICT_MISMATCH, message, _mismatch_advice(missing, unexpected, shapes))


def _mismatch_advice(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    """The likely cause: a wrapper's prefix, renamed layers, other sizes, another class."""
    wanted = set(missing)
    for name in unexpected:
        head, _, tail = name.partition(".")
        if tail in wanted:
            wrapper = " (DistributedDataParallel and DataParallel add it)" if head == "module" else ""
            return (
                f"The checkpoint's names begin with {head + '.'!r}{wrapper}; save it without: "
                f"{{k.removeprefix({head + '.'!r}): v for k, v in state_dict.items()}}."
            )
    for name in missing:
        head, _, tail = name.partition(".")
        if tail in unexpected:
            return (
                f"The architecture's names begin with {head + '.'!r}, the checkpoint's do not: name the inner class as "
                "spec.architecture.entrypoint, or save the checkpoint from the outer one."
            )
    if shapes and not missing and not unexpected:
        return "The class fits and its sizes do not: correct spec.architecture.kwargs (found is what the checkpoint needs)."
    pairs = [
        (name, close[0]) for name in missing[:SHOWN] if (close := difflib.get_close_matches(name, unexpected, 1, 0.8))
    ]
    if pairs:
        return (
            "Names that may be the same: "
            + ", ".join(f"{old} (expected) = {new} (found)" for old, new in pairs[:3])
            + "."
        )
    return "Check spec.architecture.entrypoint and kwargs: the checkpoint was saved from another class or another version of it."


def _assign(module: torch.nn.Module, state: StateDict) -> None:
    """Put the tensors in place of the module's own; those that name a non-persistent buffer as well."""
    persistent = module.state_dict().keys()
    module.load_state_dict({name: state[name] for name in persistent}, strict=True, assign=True)
    for name in state.keys() - persistent:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = state[name]


def _kind(dtype: torch.dtype) -> str:
    """float, complex, integer or bool: widths may differ (the dtype follows the file), kinds may not."""
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "integer"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shorten(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return f"{shown} and {len(items) - SHOWN} more" if len(items) > SHOWN else shown


def _invalid(message: str, next_step: str) -> StartError:
    return StartError(CHECKPOINT_INVALID, message, next_step)
