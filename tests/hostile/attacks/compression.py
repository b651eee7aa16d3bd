"""Compressed bodies."""

from __future__ import annotations

import gzip
import zlib

from hostile.attack import ROW, TORCHSERVE, V1, Attack, dump, v2

GOOD = gzip.compress(v2(), mtime=0)
MIB = 1 << 20


def raw(body: bytes) -> bytes:
    """DEFLATE without header."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return machine.compress(body) + machine.flush()


def packed(
    title: str,
    body: bytes,
    says: str | tuple[str, ...],
    status: int = 400,
    encoding: str = "gzip",
    path: str = "",
    **more: str,
) -> Attack:
    """A body that says that it is compressed."""
    where = {"path": path} if path else {}
    return Attack(title, body, says, status, headers=(("Content-Encoding", encoding),), **where, **more)  # type: ignore[arg-type]


BOMB = "the body inflates to more than 67108864 bytes (serving.maxRequestBytes)"

ATTACKS = (
    packed("gzip is a bomb", gzip.compress(bytes(65 * MIB), mtime=0), BOMB, 413),
    packed("gzip is a bomb, by V1", gzip.compress(b"[" * (65 * MIB), mtime=0), BOMB, 413, path=V1),
    packed(
        "gzip is a bomb, by TorchServe's route", gzip.compress(b"[" * (65 * MIB), mtime=0), BOMB, 413, path=TORCHSERVE
    ),
    packed("deflate is a bomb", zlib.compress(b" " * (65 * MIB)), BOMB, 413, "deflate"),
    packed("bare deflate is a bomb", raw(b" " * (65 * MIB)), BOMB, 413, "deflate"),
    packed(
        "gzip in gzip is a bomb",
        gzip.compress(gzip.compress(bytes(65 * MIB), mtime=0), mtime=0),
        "body: looks like gzip data",
    ),
    packed(
        "gzip is a bomb of values",
        gzip.compress(b"[" + b"0," * 3_000_000, mtime=0),
        "serving.limits.maxJsonElements",
        413,
    ),
    packed(
        "gzip hides a large document",
        gzip.compress(v2(data=[0] * 1_000_000), mtime=0),
        "means 10 elements, data has 1000000",
    ),
    packed("gzip is empty", b"", "the gzip data ends in the middle"),
    packed("gzip is its magic alone", b"\x1f\x8b", "the gzip data ends in the middle"),
    packed("gzip is cut off", GOOD[:-20], "the gzip data ends in the middle"),
    packed("gzip has no checksum", GOOD[:-8], "the gzip data ends in the middle"),
    packed("gzip has a wrong checksum", GOOD[:-8] + bytes(4) + GOOD[-4:], "Content-Encoding is gzip, but"),
    packed("gzip has a wrong length", GOOD[:-4] + bytes(4), "Content-Encoding is gzip, but"),
    packed("gzip is damaged", GOOD[:20] + b"\xff" * 20 + GOOD[40:], "Content-Encoding is gzip, but"),
    packed("gzip holds two documents, in a member each", GOOD * 2, "trailing characters"),
    packed(
        "gzip has 20,000 members", gzip.compress(b"", mtime=0) * 20_000, "the gzip data has more than 16384 members"
    ),
    packed("gzip is a bomb of many members", gzip.compress(bytes(MIB), mtime=0) * 65, BOMB, 413),
    packed("gzip is followed by more", GOOD + b"more", "4 bytes follow the gzip data"),
    packed(
        "gzip has a name of a megabyte", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * MIB, "the gzip data ends in the middle"
    ),
    packed("gzip uses an unknown method", b"\x1f\x8b\x07" + GOOD[3:], "Content-Encoding is gzip, but"),
    packed("gzip is plain", v2(), "Content-Encoding is gzip, but"),
    packed("gzip is deflate", zlib.compress(v2()), "Content-Encoding is gzip, but"),
    packed("deflate is gzip", GOOD, "Content-Encoding is deflate, but", encoding="deflate"),
    packed("deflate is plain", v2(), "Content-Encoding is deflate, but", encoding="deflate"),
    packed("deflate is cut off", zlib.compress(v2())[:-5], "the deflate data ends in the middle", encoding="deflate"),
    packed(
        "deflate has a wrong checksum",
        zlib.compress(v2())[:-4] + bytes(4),
        "Content-Encoding is deflate, but",
        encoding="deflate",
    ),
    packed(
        "deflate has a dictionary",
        b"\x78\xbb" + bytes(4) + raw(v2()),
        "Content-Encoding is deflate, but",
        encoding="deflate",
    ),
    packed(
        "bare deflate is followed by more", raw(v2()) + b"more", "4 bytes follow the deflate data", encoding="deflate"
    ),
    packed("an encoding is Brotli", v2(), "Content-Encoding 'br': must be one of gzip, deflate, identity", 415, "br"),
    packed(
        "an encoding is Zstandard", v2(), "Content-Encoding 'zstd': must be one of gzip, deflate, identity", 415, "zstd"
    ),
    packed(
        "an encoding is unknown", v2(), "Content-Encoding 'utf-8': must be one of gzip, deflate, identity", 415, "utf-8"
    ),
    packed("an encoding has a thousand letters", v2(), "must be one of gzip, deflate, identity", 415, "g" * 1000),
    packed(
        "there are two encodings",
        gzip.compress(GOOD, mtime=0),
        "Content-Encoding 'gzip, gzip': must be one of",
        415,
        "gzip, gzip",
    ),
    packed(
        "there are two encodings, one of them none",
        GOOD,
        "must be one of gzip, deflate, identity",
        415,
        "gzip, identity",
    ),
    packed("identity is gzip", GOOD, "body: looks like gzip data (Content-Encoding: gzip)", encoding="identity"),
    Attack(
        "the encodings are in two fields",
        gzip.compress(GOOD, mtime=0),
        "body: looks like gzip data (Content-Encoding: gzip)",
        headers=(("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")),
    ),
    Attack("gzip is not named", GOOD, "body: looks like gzip data (Content-Encoding: gzip)"),
    packed("gzip hides a bad document", gzip.compress(b"{", mtime=0), "body: Input data was truncated"),
    packed(
        "gzip hides bad rows",
        gzip.compress(dump({"instances": [ROW[:3]]}), mtime=0),
        "instances: shape [1, 3], must be [-1, 10]",
        path=V1,
    ),
    packed("gzip hides nothing", gzip.compress(b"", mtime=0), "body: is empty, must be a JSON document"),
)
