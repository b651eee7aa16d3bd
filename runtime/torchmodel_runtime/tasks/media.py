"""The elements of a BYTES input as bytes: raw where the body was the medium, base64 where it came in JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

import numpy as np

from torchmodel_runtime.errors import invalid


def read_elements(name: str, tensor: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Each element with the words that name it in an error; RequestError 400 where base64 is not."""
    for index, element in enumerate(tensor.tolist()):
        where = f"input {name!r}[{index}]"
        if isinstance(element, str):
            try:
                element = base64.b64decode(element, validate=True)
            except (binascii.Error, ValueError) as error:
                raise invalid(f"{where}: must be base64 text: {error}") from None
        if not element:
            raise invalid(f"{where}: is empty")
        yield where, element
