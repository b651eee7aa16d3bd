"""Manifest files: YAML text → documents that know which line each field stands on. Called by validate and run.

Lines come from PyYAML's node graph (`yaml.compose`); values are built from the same nodes, so both always agree.

Scalars are read as kubectl reads them (`resolve.go` of go-yaml v2, then JSON), not as PyYAML does: an unquoted `y` is a
boolean, `1e-5` is a number, `1:30` is text. So a manifest means the same here and on a cluster.
"""

from __future__ import annotations

import math
import re
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


_TAG = "tag:yaml.org,2002:"

BOOLEANS = {"y": True, "yes": True, "on": True, "true": True, "n": False, "no": False, "off": False, "false": False}
BOOLEANS |= {spelt: value for word, value in BOOLEANS.items() for spelt in (word.capitalize(), word.upper())}
"""What go-yaml v2 takes for a boolean. PyYAML leaves y and n alone, and nothing else spells them so."""

_RESOLVERS = (
    ("bool", "|".join(BOOLEANS), "yYnNtTfFoO"),
    (
        "int",
        r"[-+]?(0[xX]_*[0-9a-fA-F][0-9a-fA-F_]*|0[bB]_*[01][01_]*|0[oO]?_*[0-7][0-7_]*|0_*|[1-9][0-9_]*)",
        "-+0123456789",
    ),
    (
        "float",
        r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
)
"""Kind, pattern and first characters; the first that matches counts (go-yaml v2, resolve.go)."""


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: YAML 1.1 by go-yaml v2, then JSON, where keys are text and 5.0 is 5."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {_key_text(key): value for key, value in super().construct_mapping(node, deep).items()}


def _key_text(key: object) -> str:
    return str(key).lower() if isinstance(key, bool) or key is None else str(key)


def _construct_boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return BOOLEANS[loader.construct_scalar(node)]


def _construct_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    is_octal = re.fullmatch("[-+]?0[0-7]+", text)
    return int(text, 8 if is_octal else 0)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float | int | str:
    text = loader.construct_scalar(node)
    if text.lower().endswith((".inf", ".nan")):
        return float(text.replace(".", "", 1))
    number = float(text.replace("_", ""))
    if math.isinf(number):  # more than a double holds: go-yaml keeps the text
        return text
    return int(number) if number.is_integer() and abs(number) < 2**63 else number


for _kind, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_TAG + "bool", _construct_boolean)
_Loader.add_constructor(_TAG + "int", _construct_integer)
_Loader.add_constructor(_TAG + "float", _construct_float)


@dataclass(frozen=True)
class LocatedDocument:
    """One document of a manifest file."""

    data: Any
    node: yaml.Node
    key_problems: list[Problem] = field(default_factory=list)
    """Keys given twice, which kubectl refuses, and keys that it reads as booleans."""

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

    def boolean_word_at(self, path: FieldPath) -> str:
        """The unquoted word at a path that reads as text to a person and is a boolean in YAML, such as y; else empty."""
        node: yaml.Node = self.node
        for step in path:
            found = _child(node, step)
            if found is None:
                return ""
            _, node = found
        return _boolean_word(node)

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


def _boolean_word(node: yaml.Node) -> str:
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == _TAG + "bool"
    return str(node.value) if is_plain and node.value.lower() not in ("true", "false") else ""


def _key_problems(node: yaml.Node, path: FieldPath = ()) -> list[Problem]:
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), int(key.start_mark.line) + 1
            if name in seen:
                found.append(Problem(line, (*path, name), f"given twice; first on line {seen[name]}"))
            elif _boolean_word(key):
                meant = str(BOOLEANS[name]).lower()
                found.append(Problem(line, (*path, name), f"kubectl reads this name as {meant}; quote it: '{name}'"))
            seen.setdefault(name, line)
            found += _key_problems(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _key_problems(value, (*path, index))
    return found


def boolean_words(node: yaml.Node, path: FieldPath = ()) -> list[Problem]:
    """Every value below a node that is an unquoted y, n, yes, no, on or off, with what it is read as."""
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found += boolean_words(value, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += boolean_words(value, (*path, index))
    elif word := _boolean_word(node):
        message = f"an unquoted {word} is the boolean {str(BOOLEANS[word]).lower()}; if text is meant, write '{word}'"
        found.append(Problem(int(node.start_mark.line) + 1, path, message))
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
                documents.append(LocatedDocument(data, node, _key_problems(node)))
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
