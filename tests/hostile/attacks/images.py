"""Pictures: for the model that `testkit.tiny_media.serve_images` serves."""

from __future__ import annotations

import base64
import struct
import zlib

from hostile.attack import LENGTH, TORCHSERVE, V1, V2, Attack, binary, dump
from testkit.media_files import picture

PNG, JPEG = picture("PNG"), picture("JPEG")


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """One chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content) if checksum is None else checksum)
    )


def png(
    width: int, height: int, data: bytes = b"", *more: bytes, bits: int = 8, colour: int = 2, interlace: int = 0
) -> bytes:
    """A PNG file that says that it has these sizes; data: its compressed pixels."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def shown(
    title: str,
    body: bytes,
    says: str | tuple[str, ...],
    status: int = 400,
    content_type: str = "image/png",
    path: str = V2,
) -> Attack:
    """The picture itself as the body."""
    return Attack(title, body, says, status, path, content_type)


def written(title: str, element: str, says: str | tuple[str, ...], status: int = 400) -> Attack:
    """An element of a V2 document."""
    return Attack(
        title, dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [element]}]}), says, status
    )


def bmp(width: int, height: int) -> bytes:
    """A BMP file that says that it has these sizes."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    """A GIF file that says that it has these sizes."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x08\x00;"
    )


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF file of these entries: tag, type, count, value."""
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + bytes(4)
    )


def jpeg(width: int, height: int) -> bytes:
    """A JPEG file that says that it has these sizes."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


KNOWN = "not an image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
PIXELS = "50000000"
PIECES = "it is made of more than 65536 pieces"
DAMAGED = "the image is damaged"
ELEMENT = "input 'image'[0]: "

ATTACKS = (
    shown("a picture is empty", b"", "the body is empty"),
    shown("a picture is a blank", b" ", ELEMENT + KNOWN),
    shown("a picture is its magic alone", b"\x89PNG\r\n\x1a\n", ELEMENT + KNOWN),
    shown("a picture is random bytes", bytes(range(256)) * 40, ELEMENT + KNOWN),
    shown("a picture is JSON", b'{"inputs": []}', ELEMENT + KNOWN),
    shown(
        "a picture is EPS, which runs programs", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ELEMENT + KNOWN
    ),
    shown("a picture is SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ELEMENT + KNOWN),
    shown("a picture is a PDF document", b"%PDF-1.4\n", ELEMENT + KNOWN),
    shown("a picture is cut off in its header", PNG[:20], ELEMENT),
    shown("a picture is cut off in its pixels", PNG[:-30], ELEMENT + DAMAGED),
    shown("a JPEG picture is cut off", JPEG[: len(JPEG) // 2], ELEMENT + DAMAGED, content_type="image/jpeg"),
    shown("a picture's checksum is wrong", PNG.replace(b"IHDR", b"IHDR", 1)[:29] + bytes(4) + PNG[33:], ELEMENT),
    shown("a picture's pixels are no zlib", png(40, 40, b"not zlib"), ELEMENT + DAMAGED),
    shown("a picture's pixels are too few", png(40, 40, zlib.compress(bytes(100))), ELEMENT + DAMAGED),
    shown("a picture has no pixels at all", png(40, 40), ELEMENT + DAMAGED),
    shown("a picture is 0 pixels wide", png(0, 40, zlib.compress(b"")), ELEMENT),
    shown("a picture has a depth that does not exist", png(40, 40, zlib.compress(bytes(9000)), bits=3), ELEMENT),
    shown(
        "a picture has a colour type that does not exist", png(40, 40, zlib.compress(bytes(9000)), colour=5), ELEMENT
    ),
    shown(
        "a picture says that it has 2^31 pixels a side",
        png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100))),
        (ELEMENT, "50000000"),
        413,
    ),
    shown(
        "a picture says that it has 2^32 pixels a side",
        png(2**32 - 1, 2**32 - 1, zlib.compress(bytes(100))),
        PIXELS,
        413,
    ),
    shown(
        "a picture says that it has 51 million pixels",
        png(7200, 7100, zlib.compress(bytes(100))),
        f"{ELEMENT}7200 x 7100 pixels, at most 50000000 are taken (task.imageClassification.maxPixels)",
        413,
    ),
    shown("a picture says that it is long and narrow", png(1, 49_000_000, zlib.compress(bytes(100))), ELEMENT),
    shown(
        "a picture of a million by one is long and narrow",
        png(1_000_000, 1, zlib.compress(bytes(3_000_001))),
        ("too long and narrow",),
    ),
    shown("a picture is a bomb", png(20_000, 20_000, zlib.compress(bytes(50_000_000)), bits=1, colour=0), PIXELS, 413),
    shown(
        "a picture's text is a bomb",
        png(40, 40, b"", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000)))),
        ELEMENT,
    ),
    shown(
        "a picture's profile is a bomb",
        png(40, 40, b"", chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(70_000_000)))),
        ELEMENT,
    ),
    shown("a JPEG picture says that it has 65,535 pixels a side", jpeg(65535, 65535), PIXELS, 413, "image/jpeg"),
    shown("a JPEG picture says that it has no height", jpeg(40, 0), ELEMENT, content_type="image/jpeg"),
    shown("a JPEG picture is all fill bytes", b"\xff\xd8" + b"\xff" * 1_000_000, PIECES, content_type="image/jpeg"),
    shown(
        "a JPEG picture is all empty segments",
        b"\xff\xd8" + b"\xff\xe0\0\x02" * 250_000,
        PIECES,
        content_type="image/jpeg",
    ),
    shown("a PNG picture is all empty chunks", PNG[:33] + chunk(b"abCd", b"") * 80_000, PIECES),
    shown(
        "a GIF picture is all empty extensions",
        gif(40, 40)[:13] + b"!\xfe\0" * 300_000,
        PIECES,
        content_type="image/gif",
    ),
    shown("a BMP picture says that it has 2^30 pixels a side", bmp(2**30, 2**30), PIXELS, 413, "image/bmp"),
    shown("a BMP picture says that it has negative sizes", bmp(-40, -(2**31)), PIXELS, 413, "image/bmp"),
    shown("a GIF picture says that it has 65,535 pixels a side", gif(65535, 65535), PIXELS, 413, "image/gif"),
    shown("a TIFF picture has no entries", tiff(), ELEMENT, content_type="image/tiff"),
    shown("a TIFF picture points at itself", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ELEMENT, content_type="image/tiff"),
    shown(
        "a TIFF picture says that it has 2^31 pixels a side",
        tiff(
            (256, 4, 1, 2**31 - 1),
            (257, 4, 1, 2**31 - 1),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, 8),
            (279, 4, 1, 8),
        ),
        ELEMENT,
        413,
        "image/tiff",
    ),
    shown(
        "a TIFF picture's entry has 2^32 - 1 values",
        tiff((256, 4, 2**32 - 1, 8), (257, 4, 1, 9)),
        ELEMENT,
        content_type="image/tiff",
    ),
    shown("a WebP picture is cut off", picture("WEBP")[:40], ELEMENT, content_type="image/webp"),
    shown(
        "a picture comes by TorchServe's route, and is none",
        b"\0\1\2\3",
        ELEMENT + KNOWN,
        content_type="application/octet-stream",
        path=TORCHSERVE,
    ),
    shown("a picture comes by V1", PNG, "Content-Type image/png: must be application/json", 415, path=V1),
    shown(
        "a picture comes as JSON",
        PNG,
        "body: looks like a PNG image, its Content-Type must say so (image/...)",
        content_type="application/json",
    ),
    shown(
        "a recording comes for a picture",
        b"RIFF\0\0\0\0WAVE",
        "Content-Type audio/wav: must be application/json or image/*",
        415,
        "audio/wav",
    ),
    written("an element is no base64", "not base64!", ELEMENT + "must be base64 text"),
    written("an element is base64 without its padding", "QUJDRA", ELEMENT + "must be base64 text"),
    written("an element is not ASCII", "\u00e9\u00e9\u00e9\u00e9", ELEMENT + "must be base64 text"),
    written("an element is empty", "", ELEMENT + "is empty"),
    written("an element is a bomb", base64.b64encode(png(7200, 7100, zlib.compress(bytes(100)))).decode(), PIXELS, 413),
    Attack(
        "the second element is no picture",
        dump({"instances": [{"b64": base64.b64encode(PNG).decode()}, {"b64": "AAAA"}]}),
        "input 'image'[1]: " + KNOWN,
        path=V1,
    ),
    Attack(
        "elements are numbers",
        b'{"instances": [1, 2]}',
        "instances: Expected `str | object`, got `int` - at `$[0]`",
        path=V1,
    ),
    Attack(
        "elements have a field too many",
        b'{"instances": [{"b64": "AAAA", "a": 1}]}',
        "unknown field `a` - at `$[0]`",
        path=V1,
    ),
    Attack(
        "there are no elements",
        dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}]}),
        "at least 1",
    ),
    Attack(
        "there are more pictures than the queue takes",
        dump(
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "BYTES",
                        "shape": [1025],
                        "data": [base64.b64encode(PNG).decode()] * 1025,
                    }
                ]
            }
        ),
        "1025 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        413,
    ),
    binary(
        "an element's length is more than the bytes",
        dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}}]}),
        struct.pack("<I", 2**32 - 1) + b"abcd",
        "input 'image'[0]: 4294967295 bytes are announced, 4 are left",
    ),
    binary(
        "an element's length is cut off",
        dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 3}}]}),
        b"\1\0\0",
        "3 bytes hold no 1 elements, each of which begins with 4 bytes of length",
    ),
    binary(
        "elements are fewer than their bytes",
        dump(
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 10}}]}
        ),
        struct.pack("<IBIB", 1, 0, 1, 0),
        "5 bytes are left after 1 elements",
    ),
    binary(
        "elements are more than their bytes",
        dump(
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1000], "parameters": {"binary_data_size": 4}}]}
        ),
        bytes(4),
        "4 bytes hold no 1000 elements",
    ),
    binary(
        "an element has no bytes",
        dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}}]}),
        bytes(4),
        "input 'image'[0]: is empty",
    ),
    binary("raw mode is no picture", b"", bytes(40), ELEMENT + KNOWN, "0"),
    Attack(
        "the shape has a dimension too many",
        dump({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["AAAA"]}]}),
        "input 'image': shape [1, 1], must be [-1]",
    ),
    Attack(
        "an npy answer holds no texts",
        PNG,
        "this route answers in application/json, application/octet-stream",
        406,
        content_type="image/png",
        headers=(("Accept", "application/x-npy"),),
    ),
    Attack(
        "the header's length comes with a picture",
        PNG,
        f"{LENGTH}: got 'x', must be a number of bytes",
        content_type="image/png",
        headers=((LENGTH, "x"),),
    ),
)
