"""TorchServe's predictions: forms, and JSON."""

from __future__ import annotations

from collections.abc import Iterable

from hostile.attack import ROW, TORCHSERVE, Attack, dump, on

FORM = "multipart/form-data; boundary=line"


def part(name: str, content: bytes, *headers: str, disposition: str = "form-data") -> bytes:
    """One field; headers: whole lines besides Content-Disposition."""
    lines = [f'Content-Disposition: {disposition}; name="{name}"; filename="f"', *headers]
    return "\r\n".join(["--line", *lines, "", ""]).encode() + content + b"\r\n"


def form(
    title: str, parts: Iterable[bytes] | bytes, says: str | tuple[str, ...], content_type: str = FORM, **more: object
) -> Attack:
    """Parts and their end; bytes are taken as the whole body."""
    body = parts if isinstance(parts, bytes) else b"".join(parts) + b"--line--\r\n"
    return Attack(title, body, says, content_type=content_type, **more)  # type: ignore[arg-type]


GOOD = part("data", dump([ROW]))
PARTIAL = b"\r\n--lin" * 50_000

ATTACKS = on(
    TORCHSERVE,
    (
        form(
            "a form has no boundary", [GOOD], "Content-Type multipart/form-data: has no boundary", "multipart/form-data"
        ),
        form("a form's boundary is empty", [GOOD], "has no boundary", "multipart/form-data; boundary="),
        form("a form's boundary is empty in quotes", [GOOD], "has no boundary", 'multipart/form-data; boundary=""'),
        form(
            "a form's boundary is another", [GOOD], "body: not a multipart form", "multipart/form-data; boundary=other"
        ),
        form(
            "a form's boundary has a thousand characters",
            [GOOD],
            "Boundary length 1000 exceeds maximum of 256",
            "multipart/form-data; boundary=" + "b" * 1000,
        ),
        form(
            "a form's boundary is not ASCII",
            [GOOD],
            "body: not a multipart form",
            "multipart/form-data; boundary=\xfc\xfc\xfc\xfc",
        ),
        form(
            "a form is of another kind",
            [GOOD],
            "must be application/json or",
            "multipart/mixed; boundary=line",
            status=415,
        ),
        form("a form is empty", b"", "body: the multipart form ends before its last boundary"),
        form("a form has no parts", b"--line--\r\n", "form: missing ['x']"),
        form("a form is JSON", dump([ROW]), "body: not a multipart form"),
        form("a form ends in a part's header", GOOD[:30], "ends before its last boundary"),
        form("a form ends in a part", GOOD[:-10], "ends before its last boundary"),
        form("a form has no last boundary", GOOD, "ends before its last boundary"),
        form(
            "a form has 33 parts",
            [part(f"f{n}", b"") for n in range(33)],
            "more than 32 fields in the form (serving.limits.maxTensors)",
        ),
        form(
            "a form has 20,000 parts",
            [part("", b"")] * 20_000,
            'each part of the form needs Content-Disposition: form-data; name="..."',
        ),
        form("a form's part has no header", b"--line\r\n\r\ndata\r\n--line--\r\n", "needs Content-Disposition"),
        form(
            "a form's part has no name",
            [b"--line\r\nContent-Disposition: form-data\r\n\r\n1\r\n"],
            "needs Content-Disposition",
        ),
        form("a form's part has an empty name", [part("", b"1")], "needs Content-Disposition"),
        form("a form's part has a long name", [part("x" * 129, b"1")], "needs Content-Disposition"),
        form(
            "a form's part is an attachment",
            [part("data", b"1", disposition="attachment")],
            "needs Content-Disposition",
        ),
        form(
            "a form's part has a name that is no UTF-8",
            [part("name", b"1").replace(b'"name"', b'"\xff"')],
            "body: not a multipart form",
        ),
        form(
            "a form's part has a header without a colon", [part("data", b"1", "nonsense")], "body: not a multipart form"
        ),
        form(
            "a form's part has a header of a megabyte",
            [part("data", b"1", "X: " + "x" * 1_000_000)],
            "body: not a multipart form",
        ),
        form(
            "a form's part has a thousand headers", [part("data", b"1", *["X: y"] * 1000)], "body: not a multipart form"
        ),
        form(
            "a form's part is in base64",
            [part("data", b"W10=", "Content-Transfer-Encoding: base64")],
            "field 'data': Content-Transfer-Encoding must be binary (RFC 7578, 4.7)",
        ),
        form("a form's part comes twice", [GOOD, GOOD], "field 'data': may appear once"),
        form(
            "a form's part is a form",
            [part("data", b"--a--", "Content-Type: multipart/form-data; boundary=a")],
            "field 'data': is a form in a form",
        ),
        form(
            "a form's part is of an unknown type",
            [part("data", b"1", "Content-Type: image/png")],
            "Content-Type image/png: must be",
            status=415,
        ),
        form(
            "a form's part has a type of 4,000 letters",
            [part("data", b"1", "Content-Type: " + "x" * 4000)],
            "must be",
            status=415,
        ),
        form("a form's data is empty", [part("data", b"")], "body: is empty, must be a JSON document"),
        form("a form's data is no JSON", [part("data", b"{")], "body: Input data was truncated"),
        form(
            "a form's data is a picture",
            [part("data", b"\xff\xd8\xff" + bytes(100), "Content-Type: text/plain")],
            "body: looks like a JPEG image",
        ),
        form(
            "a form's data is an npy file that is none",
            [part("data", b"12345678901", "Content-Type: application/x-npy")],
            "body: not an npy file",
        ),
        form(
            "a form has data and more",
            [GOOD, part("top_k", b"3")],
            "fields ['top_k'] beside 'data'; give 'data' alone, or the inputs ['x']",
        ),
        form(
            "a form has another field",
            [part("top_k", b"3")],
            "missing ['x'], unknown ['top_k']; this model has ['x'], or give all in a field 'data'",
        ),
        form("a form's input is empty", [part("x", b"")], "field 'x': data must be a JSON array"),
        form("a form's input is a row", [part("x", dump(ROW))], "field 'x': shape [10], must be [-1, 10]"),
        form("a form's input has a wrong shape", [part("x", b"[[1]]")], "field 'x': shape [1, 1], must be [-1, 10]"),
        form("a form's input holds no rows", [part("x", b"[]")], "field 'x': shape [0], must be [-1, 10]"),
        form("a form is all beginnings of its boundary", b"--line\r\n" + PARTIAL, "body:"),
        form(
            "a form's part is all beginnings of its boundary",
            [part("x", PARTIAL)],
            "field 'x': data must be a JSON array",
        ),
        form(
            "a form's part is all line breaks", [part("x", b"\r\n" * 200_000)], "field 'x': data must be a JSON array"
        ),
        Attack("there is no body", b"", "body: is empty, must be a JSON document"),
        Attack("rows are cut off", b"[[1,", "instances: data: Input data was truncated"),
        Attack("rows have a wrong shape", b"[[1, 2, 3]]", "instances: shape [1, 3], must be [-1, 10]"),
        Attack("rows are none", b"[]", "instances: must hold at least one row"),
        Attack("rows are a text", b'"abc"', "Expected `object`, got `str`"),
        Attack("rows are followed by more", dump([ROW]) + b"]", "trailing characters"),
        Attack("the body is a pickle", b"\x80\x04\x95" + bytes(50), "body: looks like a pickle, which is never read"),
        Attack("the body is an archive", b"PK\x03\x04" + bytes(50), "body: looks like a zip file"),
        Attack("the body is HTML", b"<html>", "body: looks like HTML or XML"),
        Attack(
            "the body is a form's, by its name alone",
            dump([ROW]),
            "has no boundary",
            content_type="multipart/form-data",
        ),
        Attack("there is no body, by GET", b"", "body: is empty", method="GET", content_type=None),
        Attack("the row is short, by PUT", b"[[1]]", "instances: shape [1, 1], must be [-1, 10]", method="PUT"),
    ),
)
