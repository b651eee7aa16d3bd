"""Texts: for the model that `testkit.tiny_media.serve_texts` serves."""

from __future__ import annotations

import struct

from hostile.attack import TORCHSERVE, V1, V2, Attack, binary, dump


def said(
    title: str,
    body: bytes,
    says: str | tuple[str, ...],
    status: int = 400,
    content_type: str = "text/plain",
    path: str = V2,
) -> Attack:
    """The text itself as the body."""
    return Attack(title, body, says, status, path, content_type)


def texts(data: object, shape: object = (1,)) -> bytes:
    """A V2 document."""
    return dump({"inputs": [{"name": "text", "datatype": "BYTES", "shape": shape, "data": data}]})


ELEMENT = "input 'text'[0]: "
UTF8 = ELEMENT + "must be UTF-8"
LONG = ("the request, as it is decoded, holds", "serving.limits.maxBytesInFlight")

ATTACKS = (
    said("a text is empty", b"", "the body is empty"),
    said("a text is blank", b" \n\t ", ELEMENT + "holds no tokens"),
    said("a text is no UTF-8", b"the dog \xff\xfe", UTF8),
    said("a text is Latin-1", "ein Mädchen".encode("latin-1"), UTF8, content_type="text/plain; charset=utf-8"),
    said("a text is UTF-16", "the dog".encode("utf-16"), UTF8),
    said("a text has overlong UTF-8", b"the \xc0\xaf dog", UTF8),
    said("a text has a surrogate", b"the \xed\xa0\x80 dog", UTF8),
    said("a text is cut off in a letter", "the dög".encode()[:-2] + b"\xc3", UTF8),
    said("a text is too long", b"the dog runs " * 100_000, LONG, 413),
    said("a text is one long word", b"a" * 1_100_000, LONG, 413),
    said("a text is all blanks", b" " * 1_100_000, LONG, 413),
    said("a text is too long, by TorchServe's route", b"the dog " * 150_000, LONG, 413, path=TORCHSERVE),
    said(
        "a text comes as HTML",
        b"<p>the dog",
        "Content-Type text/html: must be application/json or text/plain",
        415,
        "text/html",
    ),
    said("a text comes by V1", b"the dog", "Content-Type text/plain: must be application/json", 415, path=V1),
    said("a text comes as JSON", b"the dog", "body: JSON is malformed", content_type="application/json"),
    Attack("texts are numbers", texts([1]), "Expected `", path=V2),
    Attack("texts are null", texts([None]), "input 'text': data: Expected `str`, got `null`"),
    Attack("texts are nested", texts([["a"]]), "input 'text'"),
    Attack("texts are in base64, and unmarked", dump({"instances": [{"text": 1}]}), "instances, input 'text'", path=V1),
    Attack("a text of several is blank", texts(["the dog", " "], [2]), "input 'text'[1]: holds no tokens"),
    Attack(
        "there are more texts than the queue takes",
        texts(["a"] * 1025, [1025]),
        "1025 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        413,
    ),
    Attack(
        "there are a million empty texts",
        texts([""] * 1_000_000, [1_000_000]),
        "1000000 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        413,
    ),
    binary(
        "a text in bytes is no UTF-8",
        dump({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]}),
        struct.pack("<I", 2) + b"\xff\xff",
        UTF8,
    ),
    binary("raw mode is no UTF-8", b"", b"\xff\xff", UTF8, "0"),
)
