"""Compressed request bodies (RFC 9110, 8.4), with a cap on what comes out. Called first by `codec.decode_request`.

The ports leave bodies as they came: only here is it known how large one may become. zlib stops at the cap, so a bomb costs
what an honest body of the same size costs.
"""

from __future__ import annotations

import zlib

from torchmodel_runtime.errors import RequestError, invalid, too_large
from torchmodel_runtime.exchange import Call

ENCODINGS = ("gzip", "deflate", "identity")

UNSUPPORTED = "UNSUPPORTED_ENCODING"

CHUNK_BYTES = 1 << 16
"""Fed at a time: zlib copies what follows a member, which of a whole body of small ones would be the square of its size."""
MAX_MEMBERS = 1 << 14
"""bgzip writes one for 64 KiB, so these are 1 GiB, the most that a body may be; a body of empty ones is some work, no more."""

_MEMBER = b"\x1f\x8b"
"""How a member of a gzip file begins (RFC 1952, 2.3.1)."""
_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


def inflate_body(call: Call, max_bytes: int) -> bytes:
    """The body as it was before it was compressed.

    RequestError 413 when that is more than max_bytes, 415 for an encoding that is not known, 400 for a damaged body.
    """
    encoding = call.headers["Content-Encoding"].strip().lower()
    if encoding in ("identity", ""):
        return call.body
    if encoding in ("gzip", "x-gzip"):
        return _inflate(call.body, _GZIP, encoding, max_bytes)
    if encoding == "deflate":
        return _inflate(call.body, _ZLIB if _has_zlib_header(call.body) else _RAW, encoding, max_bytes)
    message = f"Content-Encoding {encoding[:40]!r}: must be one of {', '.join(ENCODINGS)}"
    raise RequestError(415, UNSUPPORTED, message)


def _has_zlib_header(body: bytes) -> bool:
    """True for RFC 1950's two bytes. `deflate` means that form (RFC 9110, 8.4.1.2); some clients send RFC 1951 bare."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _inflate(body: bytes, window_bits: int, encoding: str, max_bytes: int) -> bytes:
    """What the body holds: of gzip all members, one after the other (RFC 1952, 2.2; pigz and bgzip write many)."""
    pieces: list[bytes] = []
    position, room = 0, max_bytes
    for _ in range(MAX_MEMBERS):
        machine = zlib.decompressobj(window_bits)
        while not machine.eof:
            chunk = body[position : position + CHUNK_BYTES]
            if not chunk:
                raise invalid(f"body: the {encoding} data ends in the middle")
            try:
                pieces.append(machine.decompress(chunk, room + 1))
            except zlib.error as error:
                raise invalid(f"body: Content-Encoding is {encoding}, but {error}") from None
            room -= len(pieces[-1])
            if room < 0:
                raise too_large(f"the body inflates to more than {max_bytes} bytes (serving.maxRequestBytes)")
            position += len(chunk) - len(machine.unused_data)
        if position == len(body):
            return b"".join(pieces)
        if window_bits != _GZIP or not body.startswith(_MEMBER, position):
            raise invalid(f"body: {len(body) - position} bytes follow the {encoding} data")
    raise invalid(f"body: the gzip data has more than {MAX_MEMBERS} members")
