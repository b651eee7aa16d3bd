"""Kubernetes quantities as numbers, for `rules` and for `torchmodel validate`. Pure."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

QUANTITY = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?")
"""Kubernetes API reference, Quantity."""

_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}
_FACTORS |= {unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", start=2)}
_FACTORS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}


def parse_quantity(value: object) -> Decimal | None:
    """A Kubernetes quantity in its base unit; None when it is none."""
    match = QUANTITY.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        return None
    number, unit = match[1], match[2] or ""
    try:
        amount = (
            Decimal(number + unit)
            if unit[:1] in ("e", "E") and unit not in _FACTORS
            else Decimal(number) * _FACTORS[unit]
        )
    except InvalidOperation:
        return None
    return amount if amount >= 0 else None
