"""Files of arrays as bodies: NumPy's npy (one tensor) and safetensors (tensors by name).

Neither can hold code: npy's pickled arrays are refused, safetensors has none. Headers are capped before they are parsed, and
every size is compared with the body before an array is made (NEP 1; safetensors README, "Format"). Called by `codec`.
"""

from __future__ import annotations

import io
import math
import re
import struct
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec.decoded import Decoded, check_names, check_rows, select_outputs
from torchmodel_runtime.codec.jsontensors import decode_json
from torchmodel_runtime.codec.negotiation import FORM_TYPES
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.rawtensors import decode_raw
from torchmodel_runtime.codec.shapes import check_elements, check_rank, check_shape, check_tensors
from torchmodel_runtime.config import Limits, TensorSpec
from torchmodel_runtime.errors import invalid, quote
from torchmodel_runtime.exchange import Answer
from torchmodel_runtime.tensors import NUMPY_DTYPES, Arrays

MAX_HEADER_BYTES = {"npy": 4096, "safetensors": 1 << 18}
"""numpy's own headers are 128 bytes; a safetensors header takes some 100 a tensor, of which there are 1024 at the most."""

HEAVY_BYTES = 1 << 20
"""An array of this size takes some tenths of a millisecond to turn, and fifty times that when it no longer fits the cache."""

_BFLOAT16 = NUMPY_DTYPES["BF16"]


def decode_npy(body: bytes, plan: Plan) -> Decoded:
    """The one input of the model; RequestError 400 or 413."""
    if plan.only is None:
        raise invalid(f"an npy file holds one tensor, this model takes {list(plan.inputs)}: send safetensors or JSON")
    inputs = [read_npy("body", body, plan.only, plan)]
    check_rows(inputs, plan.signature)
    return Decoded(inputs)


def is_heavy(body: bytes) -> bool:
    """True when an npy file is not taken as it is, and turning its bytes or its axes takes long."""
    begin = body[: MAX_HEADER_BYTES["npy"]].partition(b"\n")[0]
    return len(body) > HEAVY_BYTES and (b"'>" in begin or b"True" in begin)


def read_npy(where: str, body: bytes, spec: TensorSpec, plan: Plan) -> np.ndarray:
    """An npy file as a tensor of the declared datatype; other byte orders and column-major arrays are converted."""
    shape, is_fortran, dtype, offset = _read_npy_header(where, body)
    if dtype.hasobject:
        raise invalid(f"{where}: the npy file holds pickled Python objects, which are never read")
    wanted = _dtype_of(where, spec)
    is_bfloat16 = wanted == _BFLOAT16 and dtype == np.dtype("V2")  # numpy's name for what it does not know
    if not is_bfloat16 and dtype.newbyteorder("=") != wanted:
        raise invalid(f"{where}: the npy file has dtype {dtype}, must be {wanted} ({spec.datatype})")
    check_rank(where, len(shape), plan.limits)
    check_shape(where, shape, spec)
    check_elements([shape], plan.limits)
    size = math.prod(shape) * dtype.itemsize
    if len(body) - offset != size:
        raise invalid(f"{where}: {len(body) - offset} bytes follow the npy header, shape {list(shape)} takes {size}")
    if spec.datatype == "BOOL":
        return decode_raw(where, memoryview(body)[offset:], spec, list(shape))
    array = np.frombuffer(body, wanted if is_bfloat16 else dtype, offset=offset)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    return np.ascontiguousarray(array, wanted)


def decode_safetensors(body: bytes, plan: Plan) -> Decoded:
    """The inputs by name; RequestError 400 or 413."""
    entries, data = _read_safetensors_header(body, plan.limits)
    check_names("body", entries, plan.signature.inputs)
    check_elements([entry.shape for entry in entries.values()], plan.limits)
    inputs = []
    for name, spec in plan.inputs.items():
        where = f"tensor {name!r}"
        _dtype_of(where, spec)
        entry, wanted = entries[name], SAFETENSORS_DTYPES[spec.datatype]
        if entry.dtype != wanted:
            raise invalid(f"{where}: dtype {quote(entry.dtype)}, must be {wanted} ({spec.datatype})")
        check_rank(where, len(entry.shape), plan.limits)
        start, end = entry.data_offsets
        inputs.append(decode_raw(where, data[start:end], spec, entry.shape))
    check_rows(inputs, plan.signature)
    return Decoded(inputs)


def encode_npy(decoded: Decoded, plan: Plan, outputs: Arrays) -> Answer:
    """The one output as an npy file; bfloat16 as two plain bytes each, since numpy has no name for it."""
    file = io.BytesIO()
    ((_, array),) = select_outputs(decoded, plan.signature, outputs)
    array = np.ascontiguousarray(array)
    plain = array.view("V2") if array.dtype == _BFLOAT16 else array
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
    file.write(plain.tobytes())
    return Answer(200, file.getvalue(), FORM_TYPES["npy"][0])


def encode_safetensors(decoded: Decoded, plan: Plan, outputs: Arrays) -> Answer:
    """The outputs by name."""
    header: dict[str, _Entry] = {}
    pieces: list[bytes] = []
    position = 0
    for spec, array in select_outputs(decoded, plan.signature, outputs):
        pieces.append(array.tobytes())
        end = position + len(pieces[-1])
        header[spec.name] = _Entry(SAFETENSORS_DTYPES[spec.datatype], list(array.shape), (position, end))
        position = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)  # so that the data begins aligned
    return Answer(200, b"".join((_LENGTH.pack(len(text)), text, *pieces)), FORM_TYPES["safetensors"][0])


SAFETENSORS_DTYPES = {
    "BOOL": "BOOL",
    "UINT8": "U8",
    "UINT16": "U16",
    "UINT32": "U32",
    "UINT64": "U64",
    "INT8": "I8",
    "INT16": "I16",
    "INT32": "I32",
    "INT64": "I64",
    "FP16": "F16",
    "BF16": "BF16",
    "FP32": "F32",
    "FP64": "F64",
}
"""By V2 datatype; BYTES has none."""

_LENGTH = struct.Struct("<Q")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry_decoder = msgspec.json.Decoder(_Entry)


def _read_safetensors_header(body: bytes, limits: Limits) -> tuple[dict[str, _Entry], memoryview]:
    """The tensors by name and their data, whose offsets leave no byte unused and use none twice."""
    if len(body) < _LENGTH.size:
        raise invalid(f"body: {len(body)} bytes are no safetensors file, which begins with 8 bytes of length")
    size = int(_LENGTH.unpack_from(body)[0])
    limit = min(len(body) - _LENGTH.size, MAX_HEADER_BYTES["safetensors"])
    if size > limit:
        raise invalid(f"body: no safetensors file: its header would have {size} bytes, at most {limit} are taken")
    begin = _LENGTH.size + size
    raw: dict[str, Any] = decode_json(_header_decoder, body[_LENGTH.size : begin], "safetensors header")
    raw.pop("__metadata__", None)
    check_tensors(len(raw), limits)
    entries = {
        name: decode_json(_entry_decoder, value, f"safetensors header, tensor {name[:128]!r}")
        for name, value in raw.items()
    }
    data = memoryview(body)[begin:]
    position = 0
    for start, end in sorted(entry.data_offsets for entry in entries.values()):
        if start != position or end < start or end > len(data):
            raise invalid(f"safetensors header: data_offsets {[start, end]} leave a gap, overlap or pass the end")
        position = end
    if position != len(data):
        raise invalid(f"body: {len(data)} bytes follow the safetensors header, its tensors take {position}")
    return entries, data


_NPY_HEADER = re.compile(
    rb"\s*\{(?:\s*(?:'descr'\s*:\s*'([<>|=]?[?A-Za-z]\d{0,3})'|'fortran_order'\s*:\s*(True|False)"
    rb"|'shape'\s*:\s*\(([0-9,\s]*)\))\s*(?:,|(?=\}))){3}\s*\}\s*"
)
"""The three items, in any order, of the Python literal that NEP 1 has as header; records (a list as descr) are not read."""


def _read_npy_header(where: str, body: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether column-major, dtype, and where the data begins.

    Not by numpy's own reader: that hands the header to Python's parser, twice where it does not look right.
    """
    if len(body) < 10 or not body.startswith(b"\x93NUMPY"):
        raise invalid(f"{where}: not an npy file")
    major = body[6]
    if major not in (1, 2, 3):
        raise invalid(f"{where}: npy format {major}.{body[7]}, must be 1, 2 or 3")
    begin = 10 if major == 1 else 12
    size = int.from_bytes(body[8:begin], "little")
    if size > MAX_HEADER_BYTES["npy"]:
        raise invalid(f"{where}: an npy header of {size} bytes, at most {MAX_HEADER_BYTES['npy']} are read")
    found = _NPY_HEADER.fullmatch(body, begin, begin + size)
    if found is None or len(body) < begin + size or None in found.groups():
        raise invalid(f"{where}: not an npy file of plain numbers: its header must give descr, fortran_order and shape")
    descr, is_fortran, shape = found.groups()
    try:
        sizes = tuple(int(text) for text in shape.split(b",") if text.strip())
        dtype = np.dtype(descr.decode())
    except (TypeError, ValueError):
        raise invalid(f"{where}: npy header: descr {descr!r} or shape ({shape[:100]!r}) cannot be read") from None
    return sizes, is_fortran == b"True", dtype, begin + size


def _dtype_of(where: str, spec: TensorSpec) -> np.dtype[Any]:
    if spec.datatype == "BYTES":
        raise invalid(
            f"{where}: input {spec.name!r} is BYTES, which a file of arrays cannot hold; send the medium itself"
        )
    return NUMPY_DTYPES[spec.datatype]
