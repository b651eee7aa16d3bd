"""What the codec knows of the served model, worked out once: made by `server.serve`, read by every decoder and encoder.

Plain values only, so that the process that decodes large bodies (`decodepool`) can be sent one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torchmodel_runtime.config import Limits, Serving, Signature, TensorSpec


@dataclass(frozen=True)
class Plan:
    """One model's tensors, media and limits."""

    model: str
    version: str
    signature: Signature
    media: tuple[str, ...]
    """As `Task.media`: content types that are taken as the body itself."""
    limits: Limits
    max_bytes: int
    """Of a request body, compressed and inflated (serving.maxRequestBytes)."""
    inputs: dict[str, TensorSpec] = field(init=False)
    """By name, in the signature's order."""
    outputs: dict[str, TensorSpec] = field(init=False)
    only: TensorSpec | None = field(init=False)
    """The input of a model that has one; None: it has several."""

    def __post_init__(self) -> None:
        specs = self.signature.inputs
        object.__setattr__(self, "inputs", {spec.name: spec for spec in specs})
        object.__setattr__(self, "outputs", {spec.name: spec for spec in self.signature.outputs})
        object.__setattr__(self, "only", specs[0] if len(specs) == 1 else None)


def make_plan(model: str, version: str, signature: Signature, media: tuple[str, ...], serving: Serving) -> Plan:
    """The plan of a loaded model."""
    return Plan(model, version, signature, media, serving.limits, serving.max_request_bytes)
