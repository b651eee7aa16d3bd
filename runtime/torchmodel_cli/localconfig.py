"""A TorchModel and a folder → the documents that the fetcher and the server get on this machine. Pure.

The operator's own functions make both documents, so a field means the same here and on a cluster; what differs on one
machine (paths, address, where code comes from) is replaced afterwards. Called by `localrun`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from torchmodel_operator.manifests import make_fetch_config, make_server_config
from torchmodel_operator.spec import Model, TorchModelSpec, parse_spec
from torchmodel_runtime.config import GRPC_PORT, HTTP_PORT, CodeFile, FetchConfig, ServerConfig

from torchmodel_cli.documents import LocatedDocument, format_path


class LocalError(Exception):
    """The manifest is good, but not for this machine or not with these options; the message says what to do."""


@dataclass(frozen=True)
class LocalOptions:
    """What the command line adds to the manifest."""

    folder: Path
    """The manifest's folder, absolute: relative `file:` paths start here."""
    state: Path
    """A fresh folder for receipt, code and termination log."""
    cache: Path
    host: str = "127.0.0.1"
    port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT
    checkpoint: str | None = None
    credentials: Path | None = None


NO_EFFECT = {
    ("replicas",): 1,
    ("image", "name"): "",
    ("resources", "requests"): {},
    ("resources", "limits"): {},
    ("resources", "gpu"): {},
    ("scheduling",): {},
    ("checkpoint", "credentials"): None,
}
"""Fields that only a cluster reads, with the value that says nothing."""


def select_model(models: list[LocatedDocument], name: str | None) -> LocatedDocument:
    """The one TorchModel to run. Raises LocalError when the file holds several and no name was given, or not this one."""
    names = ", ".join(model.name for model in models)
    if name is None and len(models) > 1:
        raise LocalError(f"the file holds several models: {names}; choose one with --name")
    for model in models:
        if name is None or model.name == name:
            return model
    raise LocalError(f"no TorchModel named {name!r} in the file, it holds: {names}")


def parse_local_model(document: LocatedDocument) -> Model:
    """The document as the operator's Model. Raises SpecError as on a cluster."""
    return Model(
        namespace="local", name=document.name, uid="local", generation=1, spec=parse_spec(document.data.get("spec"))
    )


def make_local_fetch_config(model: Model, options: LocalOptions) -> FetchConfig:
    """What the fetcher is told: the checkpoint's absolute URI, this machine's cache, credentials by option or environment.

    What lies on this disk is verified where it is, without the cache.
    """
    uri = absolute_uri(options.checkpoint or model.spec.checkpoint.uri, options)
    return msgspec.structs.replace(
        make_fetch_config(model.spec),
        uri=uri,
        destination=str(options.state / "checkpoint"),
        cache=None if uri.startswith(("file:", "/")) else str(options.cache),
        credentials=str(options.credentials) if options.credentials else None,
    )


def make_local_server_config(model: Model, options: LocalOptions, code: CodeFile | None) -> ServerConfig:
    """What the server is told."""
    return msgspec.structs.replace(
        make_server_config(model),
        checkpoint_folder=str(options.state / "checkpoint"),
        code=code,
        drain_delay_seconds=0,
        host=options.host,
        port=options.port,
        grpc_port=options.grpc_port,
    )


def absolute_uri(uri: str, options: LocalOptions) -> str:
    """`file:model.pth` from the manifest's folder, a bare path (only by --checkpoint) from here, the rest as it is."""
    if uri.startswith(("s3://", "http://", "https://", "file:/")):
        return uri
    path = options.folder / uri.removeprefix("file:") if uri.startswith("file:") else Path.cwd() / uri
    return path.resolve().as_uri() + ("/" if uri.endswith("/") or path.is_dir() else "")


def find_code(spec: TorchModelSpec, documents: list[LocatedDocument]) -> CodeFile | None:
    """The code that comes with the model: inline, or from a ConfigMap in the same file. Raises LocalError if it is not there."""
    source = spec.architecture.source
    if source is None:
        return None
    if source.config_map is None:
        return CodeFile(inline=source.inline)
    wanted = source.config_map
    for document in documents:
        if document.kind == "ConfigMap" and document.name == wanted.name:
            text = (document.data.get("data") or {}).get(wanted.key)
            if isinstance(text, str):
                return CodeFile(inline=text)
            raise LocalError(f"ConfigMap {wanted.name} has no key {wanted.key!r} under data")
    raise LocalError(
        f"spec.architecture.source.configMap names {wanted.name}, which is not in this file; "
        "add the ConfigMap to it as another document, after a line with ---"
    )


def fields_without_effect(document: LocatedDocument) -> list[str]:
    """The fields given in the manifest that only a cluster reads."""
    spec: Any = document.data["spec"]
    found = []
    for path, nothing in NO_EFFECT.items():
        value = spec
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None and value != nothing:
            found.append(format_path(path))
    return found


def local_module(entrypoint: str, folder: Path) -> str | None:
    """The file or package beside the manifest that the entrypoint's module would be imported from; None: an installed one."""
    top = entrypoint.partition(":")[0].partition(".")[0]
    for candidate in (f"{top}.py", f"{top}/__init__.py"):
        if (folder / candidate).is_file():
            return candidate
    return None
