"""The form that the client wants its answer in: `Accept` (RFC 9110, 12.5.1) against what can be written. Called by `codec`."""

from __future__ import annotations

from collections.abc import Mapping

from torchmodel_runtime.codec.decoded import Decoded, Form
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Dialect

FORM_TYPES: dict[Form, tuple[str, ...]] = {
    "json": ("application/json",),
    "binary": ("application/octet-stream",),
    "npy": ("application/x-npy",),
    "safetensors": ("application/vnd.safetensors", "application/x-safetensors", "application/safetensors"),
}
"""Media types of each form, the one that is written first. The two files have no registered type; these are in use."""

MAX_RANGES = 32
"""Media ranges that are read of one header; browsers send eight."""


def choose_form(headers: Mapping[str, str], dialect: Dialect, plan: Plan, decoded: Decoded) -> Form:
    """The form to answer in; RequestError 406 names what there is. Where the client leaves it open: `decoded.form`."""
    default = decoded.form
    accept = headers.get("Accept")
    if accept is None or accept in ("*/*", ""):
        return default
    ranges = _read_ranges(accept)
    offered = offered_forms(dialect, plan, decoded.outputs)
    best, best_quality = default, 0.0
    for form in sorted(offered, key=lambda form: form != default):
        quality = max(_quality(media_type, ranges) for media_type in FORM_TYPES[form])
        if quality > best_quality:
            best, best_quality = form, quality
    if best_quality == 0:
        types = ", ".join(FORM_TYPES[form][0] for form in offered)
        raise RequestError(406, "NOT_ACCEPTABLE", f"Accept {accept[:200]!r}: this route answers in {types}")
    return best


def offered_forms(dialect: Dialect, plan: Plan, outputs: list[str] | None = None) -> list[Form]:
    """The forms of answers that a route has for this model: a file of arrays holds no BYTES, an npy file holds one array."""
    offered: list[Form] = ["json"]
    if dialect == "v1":
        return offered
    if dialect == "v2":
        offered.append("binary")
    specs = [spec for spec in plan.signature.outputs if outputs is None or spec.name in outputs]
    if all(spec.datatype != "BYTES" for spec in specs):
        if len(specs) == 1:
            offered.append("npy")
        offered.append("safetensors")
    return offered


def _read_ranges(accept: str) -> list[tuple[str, float]]:
    """Media ranges with their qualities; what cannot be read counts as not there."""
    ranges: list[tuple[str, float]] = []
    for item in accept.split(",", MAX_RANGES)[:MAX_RANGES]:
        media_range, _, rest = item.partition(";")
        quality = 1.0
        for parameter in rest.split(";"):
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        ranges.append((media_range.strip().lower(), quality))
    return ranges


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Of the most specific range that matches; 0 where none does."""
    family = media_type.partition("/")[0] + "/*"
    for wanted in (media_type, family, "*/*"):
        found = [quality for media_range, quality in ranges if media_range == wanted]
        if found:
            return max(found)
    return 0.0
