"""A document against the CRD's own schema: every violation at once, in the words of this project. Pure.

The checks are jsonschema's; structural schemas differ from JSON Schema in three points, which are handled here: fields that
are not listed are refused (as `kubectl apply` does), int-or-string has no type, and null is not a value. Called by
`validation`, which adds the lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonschema import Draft4Validator
from jsonschema.exceptions import ValidationError

from torchmodel_cli.documents import FieldPath

Json = dict[str, Any]

MAX_SHOWN = 60
"""A value longer than this many characters is cut in a message; our choice."""

TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


class Violation(NamedTuple):
    """One violation: where, and a message without the path."""

    path: FieldPath
    message: str


def check_schema(data: Any, schema: Json, root: FieldPath = ()) -> list[Violation]:
    """All violations of a structural schema, in no particular order."""
    found = [
        violation
        for error in Draft4Validator(schema).iter_errors(data)
        for violation in _violations_of(error, (*root, *error.absolute_path))
    ]
    return [*found, *_walk(data, schema, root)]


def _violations_of(error: ValidationError, path: FieldPath) -> Iterator[Violation]:
    schema: Any = error.schema
    instance: Any = error.instance
    names: Any = error.validator_value
    if error.validator == "required":
        for name in names:
            if name not in instance:
                yield Violation((*path, name), "is missing" + _purpose(schema["properties"].get(name, {})))
    else:
        yield Violation(path, f"got {shown(instance)}, {_allowed(error)}")


def _purpose(schema: Json) -> str:
    """The first sentence of a field's description, as a reminder of what belongs there."""
    sentence = re.split(r"\.(?:\s|$)", schema.get("description", ""), maxsplit=1)[0]
    return f"; {sentence[:1].lower()}{sentence[1:]}" if sentence else ""


def _allowed(error: ValidationError) -> str:
    """What would be allowed, from the schema's keyword that failed."""
    schema: Any = error.schema
    instance: Any = error.instance
    value: Any = error.validator_value
    if error.validator in ("minimum", "maximum", "exclusiveMinimum"):
        return f"must be {_range(schema.get('minimum'), schema.get('maximum'), bool(schema.get('exclusiveMinimum')))}"
    if error.validator == "type":
        return f"must be {TYPE_NAMES.get(value, value)}"
    if error.validator == "enum":
        allowed = [str(choice) for choice in value if choice != ""]
        return f"must be one of {', '.join(allowed)}{_hint(str(instance), allowed)}"
    if error.validator in ("minItems", "maxItems"):
        return f"must have {_range(schema.get('minItems', 0), schema.get('maxItems'))} entries, has {len(instance)}"
    if error.validator in ("minLength", "maxLength"):
        bounds = _range(schema.get("minLength", 0), schema.get("maxLength"))
        return f"must have {bounds} characters, has {len(instance)}"
    if error.validator == "pattern":
        is_case = re.search(value, instance) is None and re.search(value, instance.lower()) is not None
        return f"must match {value}" + ("; write it in lower case" if is_case else _purpose(schema))
    return error.message


def _range(low: float | None, high: float | None, is_low_excluded: bool = False) -> str:
    if low is None:
        return f"at most {high}"
    if is_low_excluded:
        return f"more than {low}" + (f" and at most {high}" if high is not None else "")
    return f"{low} to {high}" if high is not None else f"at least {low}"


def _walk(data: Any, schema: Json, path: FieldPath) -> Iterator[Violation]:
    """What JSON Schema does not say: unlisted fields, and int-or-string."""
    if schema.get("x-kubernetes-int-or-string") and (isinstance(data, bool) or not isinstance(data, int | str)):
        yield Violation(path, f"got {shown(data)}, must be a string or a whole number{_purpose(schema)}")
    if isinstance(data, dict):
        for name, value in data.items():
            known = schema.get("properties")
            if known is not None and name not in known:
                yield Violation((*path, str(name)), f"unknown field{_hint(str(name), list(known))}")
            else:
                inner = known[name] if known is not None else schema.get("additionalProperties", {})
                yield from _walk(value, inner, (*path, str(name)))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _walk(value, schema.get("items", {}), (*path, index))


def _hint(given: str, allowed: list[str]) -> str:
    """`; did you mean …?` when something near exists; letter case and - do not count."""
    plain = {word.lower().replace("_", "").replace("-", ""): word for word in allowed}
    near = difflib.get_close_matches(given.lower().replace("_", "").replace("-", ""), list(plain), n=1, cutoff=0.6)
    return f"; did you mean {plain[near[0]]}?" if near else ""


def shown(value: Any) -> str:
    """A value as a user would recognise it, shortened."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
