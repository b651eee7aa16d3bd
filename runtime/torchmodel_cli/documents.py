"""Manifest files: YAML text → documents that know which line each field stands on. Called by validate and run.

Lines come from PyYAML's node graph (`yaml.compose`); values are built from the same nodes, so both always agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FieldPath = tuple[str | int, ...]
"""Where a value stands in a document, for example ("spec", "signature", "inputs", 0, "shape")."""


class Problem(NamedTuple):
    """One thing that is wrong with a manifest file."""

    line: int
    """1-based."""
    path: FieldPath
    message: str


class ManifestError(Exception):
    """The file cannot be read at all; the message says where and why."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: no dates, a bare 2026-01-01 stays a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class LocatedDocument:
    """One document of a manifest file."""

    data: Any
    node: yaml.Node
    duplicates: list[Problem] = field(default_factory=list)
    """Keys given twice: YAML readers differ on them, kubectl refuses them."""

    @property
    def kind(self) -> str:
        """The document's kind, empty when it has none."""
        return str(self.data.get("kind", "")) if isinstance(self.data, dict) else ""

    @property
    def name(self) -> str:
        """metadata.name, empty when there is none."""
        metadata = self.data.get("metadata") if isinstance(self.data, dict) else None
        return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""

    def line_of(self, path: FieldPath) -> int:
        """The line of the field at a path, or of the deepest part of it that exists."""
        node, line = self.node, int(self.node.start_mark.line) + 1
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def block_line_of(self, path: FieldPath) -> int:
        """The first line of a text's content: below the key when it is a block (`|`), else the field's own line."""
        node: yaml.Node = self.node
        for step in path:
            found = _child(node, step)
            if found is None:
                return self.line_of(path)
            _, node = found
        is_block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        return int(node.start_mark.line) + (2 if is_block else 1)


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return int(key.start_mark.line) + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return int(node.value[step].start_mark.line) + 1, node.value[step]
    return None


def _duplicates(node: yaml.Node, path: FieldPath = ()) -> list[Problem]:
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), int(key.start_mark.line) + 1
            if name in seen:
                found.append(Problem(line, (*path, name), f"given twice; first on line {seen[name]}"))
            seen.setdefault(name, line)
            found += _duplicates(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _duplicates(value, (*path, index))
    return found


def parse_documents(text: str) -> list[LocatedDocument]:
    """The documents of a manifest file, empty ones left out. Raises ManifestError when it is not YAML."""
    documents = []
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            data = loader.construct_document(node) if node is not None else None
            if node is not None and data is not None:
                documents.append(LocatedDocument(data, node, _duplicates(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ManifestError(f"not YAML: {error.problem or error.context}", int(mark.line) + 1 if mark else 1) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"not YAML: {error}") from None
    finally:
        loader.dispose()
    return documents


def read_documents(file: Path) -> list[LocatedDocument]:
    """parse_documents on a file. Raises ManifestError."""
    try:
        return parse_documents(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def format_path(path: FieldPath) -> str:
    """("spec", "inputs", 0, "shape") → spec.inputs[0].shape."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")
