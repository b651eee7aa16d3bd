"""`torchmodel validate`: everything that is wrong with a manifest file, at once, with line numbers. Also run's first step.

Layers, each skipped where a lower one already failed: YAML → the CRD's schema → the rules across fields (the CEL of the
CRD, in its Python form) → what only a person's tools can see (Python syntax, quantities). What passes here is also passed
by `spec.parse_spec`, which runs last as the judge.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torchmodel_operator import crd
from torchmodel_operator.errors import SpecError
from torchmodel_operator.quantities import parse_quantity
from torchmodel_operator.rules import RULES
from torchmodel_operator.spec import API_VERSION, KIND, TorchModelSpec, check_name, parse_spec

from torchmodel_cli.documents import (
    FieldPath,
    LocatedDocument,
    ManifestError,
    Problem,
    boolean_words,
    format_path,
    read_documents,
)
from torchmodel_cli.schemacheck import Violation, check_schema, shown

METADATA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "the model's name, as in its URL"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array"},
        "ownerReferences": {"type": "array"},
    }
    # what the API server adds, and `kubectl get -o yaml` therefore prints
    | {name: {} for name in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink")},
}
"""The part of Kubernetes' ObjectMeta that a manifest may hold (Kubernetes API reference, ObjectMeta)."""


class CheckedFile(NamedTuple):
    """A manifest file, read and checked."""

    documents: list[LocatedDocument]
    """Every document, those of other kinds too."""
    problems: list[Problem]

    @property
    def models(self) -> list[LocatedDocument]:
        """The TorchModels among the documents."""
        return [document for document in self.documents if document.kind == KIND]


def check_file(file: Path) -> CheckedFile:
    """Read a manifest file and find all that is wrong with it, ordered by line. Never raises for what the file holds."""
    try:
        documents = read_documents(file)
    except ManifestError as error:
        return CheckedFile([], [Problem(error.line, (), error.message)])
    checked = CheckedFile(documents, [])
    if not checked.models:
        kinds = ", ".join(document.kind or "no kind" for document in documents) or "nothing"
        checked.problems.append(Problem(1, (), f"no {KIND} in this file, found {kinds}"))
    for document in documents:
        checked.problems.extend(check_model(document) if document.kind == KIND else document.key_problems)
    checked.problems.sort(key=lambda problem: problem.line)
    return checked


def check_model(document: LocatedDocument) -> list[Problem]:
    """All that is wrong with one TorchModel."""
    schema = crd.openapi_schema()
    schema["properties"]["metadata"] = METADATA_SCHEMA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    violations = check_schema(document.data, schema)
    violations += _check_identity(document)
    violations += _check_uri(document.data)
    violations += _check_rules(document.data, violations)
    violations += _check_quantities(document.data)
    problems = [*document.key_problems, *_check_source(document)]
    problems += [
        Problem(document.line_of(path), path, message + _boolean_hint(document, path)) for path, message in violations
    ]
    return problems or _judge(document)


def _boolean_hint(document: LocatedDocument, path: FieldPath) -> str:
    word = document.boolean_word_at(path)
    return f"; an unquoted {word} is a boolean in YAML, write '{word}'" if word else ""


def _check_identity(document: LocatedDocument) -> list[Violation]:
    found = []
    version = document.data.get("apiVersion", API_VERSION)
    if version != API_VERSION:
        found.append(Violation(("apiVersion",), f"got {shown(version)}, must be {API_VERSION}"))
    metadata = document.data.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("name"), str):
        try:
            check_name(document.name)
        except SpecError as error:
            found.append(Violation(("metadata", "name"), error.message.removeprefix("metadata.name: ")))
    return found


def _check_rules(data: Any, violations: list[Violation]) -> list[Violation]:
    """The rules across fields, but none that reads a field which is already known to be wrong."""
    wrong = [path for path, _ in violations]
    try:
        spec = msgspec.convert(_without(data, wrong).get("spec"), TorchModelSpec)
    except (msgspec.ValidationError, AttributeError):
        return []
    found = []
    for rule in RULES:
        read = {(*rule.path, field) for field in re.findall(r"self\.(\w+)", rule.cel)} | {rule.path}
        is_blocked = any(path[: len(field)] == field for path in wrong for field in read)
        if not is_blocked and not rule.holds(spec):
            found.append(Violation(rule.path, rule.message))
    return found


def _without(data: Any, paths: list[FieldPath], here: FieldPath = ()) -> Any:
    """A copy without the mapping fields at these paths."""
    if isinstance(data, dict):
        return {
            name: _without(value, paths, (*here, name)) for name, value in data.items() if (*here, name) not in paths
        }
    if isinstance(data, list):
        return [_without(value, paths, (*here, index)) for index, value in enumerate(data)]
    return data


def _check_quantities(data: Any) -> list[Violation]:
    """resources: readable quantities, and requests that do not pass the limits; a Deployment would be refused."""
    spec = data.get("spec")
    resources = spec.get("resources") if isinstance(spec, dict) else None
    if not isinstance(resources, dict):
        return []
    amounts: dict[tuple[str, str], Decimal] = {}
    found = []
    for side in ("requests", "limits"):
        given = resources.get(side)
        for name, value in given.items() if isinstance(given, dict) else ():
            amount = parse_quantity(value)
            if amount is None and isinstance(value, str | int) and not isinstance(value, bool):
                message = f"got {shown(value)}, must be a Kubernetes quantity such as 500m, 2 or 4Gi"
                found.append(Violation(("spec", "resources", side, name), message))
            elif amount is not None:
                amounts[side, name] = amount
    for (side, name), amount in amounts.items():
        limit = amounts.get(("limits", name), amount)
        if side == "requests" and amount > limit:
            message = f"got {resources[side][name]}, must be at most limits.{name}, {resources['limits'][name]}"
            found.append(Violation(("spec", "resources", side, name), message))
    return found


def _check_uri(data: Any) -> list[Violation]:
    """checkpoint.uri: what the schema lets through and no fetcher can open, and how to write it."""
    spec = data.get("spec")
    checkpoint = spec.get("checkpoint") if isinstance(spec, dict) else None
    uri = checkpoint.get("uri") if isinstance(checkpoint, dict) else None
    path = uri.removeprefix("file:") if isinstance(uri, str) else ""
    message = ""
    if path.startswith("~"):
        message = f"got {shown(uri)}, ~ is not expanded; write the whole path, as file:///home/me/model.pth"
    elif isinstance(uri, str) and uri.startswith("file:/") and not uri.startswith("file:///"):
        message = f"got {shown(uri)}, an absolute path has three slashes: file:///{path.lstrip('/')}"
    elif uri and "://" not in path and path == uri and not uri.startswith("/"):
        message = f"got {shown(uri)}, must be s3://bucket/key, https://host/path or, beside this manifest, file:{uri}"
    return [Violation(("spec", "checkpoint", "uri"), message)] if message else []


def _check_source(document: LocatedDocument) -> list[Problem]:
    """Python given in the manifest must at least parse; the line is that in the manifest."""
    path: FieldPath = ("spec", "architecture", "source", "inline")
    source: Any = document.data
    for step in path:
        source = source.get(step) if isinstance(source, dict) else None
    if not isinstance(source, str):
        return []
    try:
        compile(source, "inline", "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return [
            Problem(
                document.block_line_of(path) + line - 1,
                path,
                f"line {line} is not Python: {getattr(error, 'msg', error)}",
            )
        ]
    return []


def _judge(document: LocatedDocument) -> list[Problem]:
    """The last word is that of the operator's own parser, so that a manifest called good is good."""
    try:
        parse_spec(document.data.get("spec"))
    except SpecError as error:
        return [Problem(document.line_of(("spec",)), (), error.message)]
    return []


def format_problem(file: Path, problem: Problem) -> str:
    """`file.yaml:12: spec.serving.batching.maxSize: got 0, must be 1 to 4096`."""
    where = f"{format_path(problem.path)}: " if problem.path else ""
    return f"{file}:{problem.line}: {where}{problem.message}"


def notes_of(document: LocatedDocument) -> list[str]:
    """What is allowed and still worth saying before `kubectl apply`."""
    notes = [f"line {line}: {format_path(path)}: {message}" for line, path, message in boolean_words(document.node)]
    uri = document.data["spec"]["checkpoint"]["uri"]
    if str(uri).startswith("file:") and not str(uri).startswith("file:/"):
        notes.append(
            f"{uri} is relative to this file, so `torchmodel run` serves it; a cluster needs s3://, https:// or http://"
        )
    return notes


def validate(files: list[Path]) -> int:
    """Check files, print what is wrong and what is good. Returns the exit code: 1 when anything is wrong."""
    exit_code = 0
    for file in files:
        checked = check_file(file)
        for problem in checked.problems:
            print(format_problem(file, problem))
        if checked.problems:
            exit_code = 1
            continue
        for model in checked.models:
            print(f"{file}: {KIND} {model.name} is valid")
            for note in notes_of(model):
                print(f"  note: {note}")
    return exit_code
