"""What must hold of a decoder, whatever bytes it gets: what it decodes is what the signature says, or it refuses with a 4xx."""

from __future__ import annotations

import json

import numpy as np
from multidict import CIMultiDict
from torchmodel_runtime import codec
from torchmodel_runtime.config import Limits, Signature
from torchmodel_runtime.errors import MAX_MESSAGE, RequestError
from torchmodel_runtime.exchange import Dialect
from torchmodel_runtime.tensors import NUMPY_DTYPES, Arrays


class BrokenPromise(AssertionError):
    """What must hold does not; carries what was found."""


def promise(holds: bool, *found: object) -> None:
    """BrokenPromise where it does not; not an assert, which Python leaves out on demand."""
    if not holds:
        raise BrokenPromise(*found)


def read_message(data: bytes) -> tuple[CIMultiDict[str], bytes]:
    """Header fields as aiohttp hands them on (UTF-8, what is none as surrogates), and the body."""
    head, _, body = data.partition(b"\n\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in head.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers.add(name.strip().decode("latin-1"), value.strip(b" \t").decode("utf-8", "surrogateescape"))
    return headers, body


def check_refusal(error: RequestError, dialect: Dialect) -> None:
    """A 4xx with a sentence that is neither empty nor long, in the dialect's form."""
    promise(400 <= error.status < 500, error.status, error.message)
    promise(0 < len(error.message) <= MAX_MESSAGE + 3, error.message)
    promise(error.code.isupper() and error.code.isascii(), error.code)
    answer = codec.encode_error(dialect, error)
    if dialect != "grpc":
        told = json.loads(answer.body)
        promise(
            (told["message"] if dialect == "torchserve" else told["error"])
            == error.message.encode("utf-8", "replace").decode(),
            told,
        )


def check_inputs(inputs: Arrays, signature: Signature, limits: Limits) -> None:
    """Arrays as the signature has them, within the limits, all of the same number of rows."""
    promise(len(inputs) == len(signature.inputs), len(inputs))
    for array, spec in zip(inputs, signature.inputs, strict=True):
        promise(array.dtype == NUMPY_DTYPES[spec.datatype], spec.name, array.dtype)
        promise(array.ndim == len(spec.shape), spec.name, array.shape)
        promise(
            all(allowed in (-1, given) for given, allowed in zip(array.shape, spec.shape, strict=True)), array.shape
        )
        promise(array.size > 0 and len(array) == len(inputs[0]), spec.name, array.shape)
        if spec.datatype == "BOOL":
            promise(bool((np.ascontiguousarray(array).view(np.uint8) <= 1).all()), array)
        if spec.datatype == "BYTES":
            promise(all(isinstance(element, (str, bytes)) for element in array.tolist()), array)
    promise(sum(array.size for array in inputs) <= limits.max_elements, [array.shape for array in inputs])
