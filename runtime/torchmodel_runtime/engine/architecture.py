"""From `module:Class` and keyword arguments to something that builds the module, without running what was not allowed.

`startup.py` calls `resolve` in the engine's thread. Unless the owner allowed code, what is called must be a torch.nn.Module
subclass, a classmethod of one, or a function that says it returns one: `os:system` is refused before it is called.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import linecache
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchmodel_runtime.artifacts import read_json
from torchmodel_runtime.config import (
    ARCHITECTURE_INVALID,
    CODE_NOT_ALLOWED,
    Architecture,
    CodeFile,
)
from torchmodel_runtime.errors import StartError

PRIVATE_PREFIX = "_torchmodel_source_"

CODE_LOADERS = ("torch.hub", "torch.jit", "torch.export", "torch.package", "torch.utils.cpp_extension")
"""Parts of torch that fetch or run programs by their arguments; some of them say they return a Module."""

CODE_KEYS = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "trust_remote_code")
"""Keys of a Hugging Face config.json that make transformers look for code elsewhere, in the repository or on the hub."""


def resolve(
    architecture: Architecture, code: CodeFile | None, folder: Path, allow_code: bool
) -> Callable[[], torch.nn.Module]:
    """A function that builds a fresh module on the current default device. Raises StartError."""
    module_name, _, path = architecture.entrypoint.partition(":")
    if not allow_code and any(step == "from_pretrained" or step.startswith("_") for step in path.split(".")):
        raise StartError(
            CODE_NOT_ALLOWED,
            f"architecture.entrypoint: {architecture.entrypoint} may fetch or run what is not in the checkpoint",
            "Name the class itself; the weights come from spec.checkpoint.",
        )
    if code is not None:
        if not allow_code:
            raise StartError(
                CODE_NOT_ALLOWED,
                "architecture.source brings code, and security.allowCodeExecution is false",
                "Read the code; if you trust it, set spec.security.allowCodeExecution: true "
                "(the operator must allow it as well).",
            )
        module = _import_source(module_name, code)
    else:
        module = _import_installed(module_name)
    target = _find(module, path, architecture.entrypoint)
    if not allow_code:
        _check_is_harmless(target, architecture.entrypoint)
    arguments = _config_arguments(target, folder)
    _check_arguments(target, arguments, architecture)

    def build() -> torch.nn.Module:
        try:
            built = target(*arguments, **architecture.kwargs)
        except Exception as error:
            raise _invalid(
                f"{_call_text(architecture)} raised {type(error).__name__}: {error}",
                f"Correct spec.architecture.kwargs; the signature is {_signature_text(target)}.",
            ) from error
        if not isinstance(built, torch.nn.Module):
            raise _invalid(
                f"{_call_text(architecture)} gave {type(built).__name__}, must give a torch.nn.Module",
                "Name the class of the model, or a function that returns one.",
            )
        return built

    return build


def _import_installed(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            raise _invalid(
                f"architecture.entrypoint: no module {missing!r} is installed{_similar(missing)}",
                f"Leave out .py: a module is named as in `import {missing.removesuffix('.py')}`."
                if missing.endswith(".py")
                else "Install it where the server runs (in a cluster: use an image that has it), or give the code itself: "
                "spec.architecture.source.",
            ) from None
        raise _invalid(
            f"importing {name} failed: it needs {missing!r}, which is not installed",
            f"Install {missing!r} where the server runs (in a cluster: use an image that has it).",
        ) from error
    except Exception as error:  # an import runs the package's code, which may raise anything
        raise _invalid(
            f"importing {name} raised {type(error).__name__}: {error}",
            "Try `python -c 'import " + name + "'` in the runtime image.",
        ) from error


def _import_source(name: str, code: CodeFile) -> types.ModuleType:
    """Run a source file as a module under a private name, so that it shadows nothing that is installed."""
    if (code.inline is None) == (code.path is None):
        raise _invalid("code: exactly one of inline and path must be set", "Set one of the two.")
    try:
        source = code.inline if code.inline is not None else Path(str(code.path)).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"architecture.source cannot be read: {error}", "Check the ConfigMap's name and key.") from error
    private = PRIVATE_PREFIX + name.replace(".", "_")
    filename = code.path or f"<architecture.source: {name}>"
    module = types.ModuleType(private)
    module.__file__ = filename
    sys.modules[private] = module  # dataclasses and typing look modules up by name
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        exec(compile(source, filename, "exec"), module.__dict__)  # noqa: S102 - security.allowCodeExecution was checked
    except Exception as error:
        line = _line_of(error, filename)
        raise _invalid(
            f"architecture.source{f', line {line}' if line else ''}: {type(error).__name__}: {error}",
            "Correct the source; it runs like any Python module.",
        ) from error
    return module


def _line_of(error: BaseException, filename: str) -> int | None:
    """The last line of the source that the error passed."""
    if isinstance(error, SyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _find(module: types.ModuleType, path: str, entrypoint: str) -> Callable[..., Any]:
    """The attribute at a dotted path, which may not lead through another module."""
    found: Any = module
    for step in path.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            names = [name for name in dir(found) if not name.startswith("_")]
            close = difflib.get_close_matches(step, names, n=3)
            raise _invalid(
                f"architecture.entrypoint: {entrypoint} has no {step!r}",
                f"Did you mean {' or '.join(close)}?" if close else f"It has {names[:20]}.",
            ) from None
        if isinstance(found, types.ModuleType):
            raise _invalid(
                f"architecture.entrypoint: {entrypoint} leads through the module {found.__name__}",
                f"Name that module before the colon: {found.__name__}:...",
            )
    if not callable(found):
        raise _invalid(f"architecture.entrypoint: {entrypoint} is not callable", "Name a class or a function.")
    return typing.cast(Callable[..., Any], found)


def _check_is_harmless(target: Callable[..., Any], entrypoint: str) -> None:
    """Refuse what is not evidently a way to build a module."""
    origin = getattr(target, "__module__", "") or ""
    is_loader = any(origin == name or origin.startswith(name + ".") for name in CODE_LOADERS)
    if not is_loader and (_is_module_class(target) or _is_module_factory(target)):
        return
    raise StartError(
        CODE_NOT_ALLOWED,
        f"architecture.entrypoint: {entrypoint} is neither a torch.nn.Module class, a classmethod of one, "
        "nor a function annotated to return one",
        "Name the class; or, if you trust what it does, set spec.security.allowCodeExecution: true.",
    )


def _is_module_class(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, torch.nn.Module)


def _is_module_factory(target: object) -> bool:
    if inspect.ismethod(target):
        return _is_module_class(target.__self__)
    if not inspect.isfunction(target):
        return False
    try:
        returned = typing.get_type_hints(target).get("return")
    except Exception:  # noqa: BLE001 - an annotation that cannot be evaluated proves nothing
        return False
    return _is_module_class(returned)


def _config_arguments(target: object, folder: Path) -> list[Any]:
    """transformers' way: a class with config_class takes the config.json beside the weights as its first argument."""
    config_class = getattr(target, "config_class", None)
    path = folder / "config.json"
    if not isinstance(target, type) or config_class is None or not path.is_file():
        return []
    settings = {key: value for key, value in read_json(path).items() if key not in CODE_KEYS}
    try:
        return [config_class(**settings)]
    except Exception as error:
        raise _invalid(
            f"config.json does not fit {config_class.__name__}: {error}",
            "Check that spec.architecture.entrypoint is the class the checkpoint was saved from "
            f"(config.json says {settings.get('architectures')}).",
        ) from error


def _check_arguments(target: Callable[..., Any], arguments: list[Any], architecture: Architecture) -> None:
    """Name a wrong, missing or doubled argument before the call, with the one that may have been meant."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    unknown = [] if takes_any else [name for name in architecture.kwargs if name not in parameters]
    close = {name: difflib.get_close_matches(name, parameters, 1) for name in unknown}
    hints = ", ".join(f"{name} -> {names[0]}" for name, names in close.items() if names)
    try:
        signature.bind(*arguments, **architecture.kwargs)
    except TypeError as error:
        what = f"unknown {unknown}; {error}" if unknown else str(error)
        raise _invalid(
            f"architecture.kwargs do not fit {architecture.entrypoint}: {what}",
            f"The signature is {architecture.entrypoint}{signature}." + (f" Did you mean {hints}?" if hints else ""),
        ) from None


def _signature_text(target: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(target))
    except (TypeError, ValueError):
        return "not known"


def _call_text(architecture: Architecture) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in architecture.kwargs.items())
    return f"{architecture.entrypoint}({arguments})"


def _similar(name: str) -> str:
    """The installed package whose name is closest."""
    top = name.partition(".")[0]
    close = difflib.get_close_matches(top, sorted(importlib.metadata.packages_distributions()), n=1, cutoff=0.8)
    return f" (did you mean {close[0]!r}?)" if close and close[0] != top else ""


def _invalid(message: str, next_step: str) -> StartError:
    return StartError(ARCHITECTURE_INVALID, message, next_step)
