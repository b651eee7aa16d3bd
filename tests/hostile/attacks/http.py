"""What is no HTTP, or HTTP that two readers may read differently: bytes on a connection (RFC 9112, 9110)."""

from __future__ import annotations

from dataclasses import dataclass

from hostile.attack import v2

PATH = "/v2/models/mlp/infer"
BODY = v2()
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: smuggled\r\n\r\n"
"""If it is answered, the server took for a request what others took for a body."""


@dataclass(frozen=True)
class Bytes:
    """What is sent, and the one answer; afterwards the connection is closed."""

    title: str
    sent: bytes
    says: str = ""
    status: int = 400


def head(*lines: str, path: str = PATH, method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    """A request's head."""
    return "\r\n".join(
        [f"{method} {path} {version}", "Host: test", "Content-Type: application/json", *lines, "", ""]
    ).encode("latin-1")


def framed(title: str, *lines: str, body: bytes = BODY, says: str = "", status: int = 400) -> Bytes:
    """A request whose framing is wrong, and one that a wrong reader would take out of it."""
    return Bytes(title, head(*lines) + body + SMUGGLED, says, status)


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)

FRAMING = (
    framed("a length and chunks", LENGTH, CHUNKED, body=CHUNKS),
    framed("chunks and a length", CHUNKED, "Content-Length: 4", body=CHUNKS),
    framed("two lengths that differ", LENGTH, "Content-Length: 0"),
    framed("two lengths that are equal", LENGTH, LENGTH),
    framed("two lengths in one field", "Content-Length: 5, 5"),
    framed("a negative length", "Content-Length: -1"),
    framed("a length with a sign", f"Content-Length: +{len(BODY)}"),
    framed("a hexadecimal length", "Content-Length: 0x10"),
    framed("a length with a fraction", "Content-Length: 5.0"),
    framed("a length with an underscore", "Content-Length: 1_0"),
    framed("a length that is a word", "Content-Length: many"),
    framed("a length that is empty", "Content-Length:"),
    framed("a length beyond 64 bits", "Content-Length: 18446744073709551617"),
    framed("a length in superscript", "Content-Length: 1\u00b2"),
    framed("chunks that come twice", CHUNKED, CHUNKED, body=CHUNKS),
    framed("chunks that are not last", "Transfer-Encoding: chunked, gzip", body=CHUNKS),
    framed("chunks of an unknown kind", "Transfer-Encoding: xchunked", body=CHUNKS),
    framed("identity chunks", "Transfer-Encoding: identity", body=CHUNKS),
    framed("chunks named with a tab before them", "Transfer-Encoding:\tchunked, identity", body=CHUNKS),
    framed("chunks named after a blank", "Transfer-Encoding : chunked", body=CHUNKS),
    framed("a length named after a blank", f"Content-Length : {len(BODY)}"),
    framed("a field that is folded", "X: a", " Transfer-Encoding: chunked", LENGTH),
    Bytes("chunks by HTTP/1.0", head(CHUNKED, version="HTTP/1.0") + CHUNKS + SMUGGLED),
)

CHUNK = (
    framed("a chunk's size is no number", CHUNKED, body=b"many\r\n" + BODY),
    framed("a chunk's size is negative", CHUNKED, body=b"-1\r\n" + BODY),
    framed("a chunk's size has a sign", CHUNKED, body=b"+5\r\nabcde\r\n0\r\n\r\n"),
    framed("a chunk's size is 0x5", CHUNKED, body=b"0x5\r\nabcde\r\n0\r\n\r\n"),
    framed("a chunk's size is beyond 64 bits", CHUNKED, body=b"f" * 17 + b"\r\nabc"),
    framed("a chunk's size has 100,000 digits", CHUNKED, body=b"0" * 100_000 + b"5\r\nabcde\r\n0\r\n\r\n"),
    framed("a chunk's size is empty", CHUNKED, body=b"\r\nabc\r\n"),
    framed("a chunk is longer than it says", CHUNKED, body=b"2\r\nabcde\r\n0\r\n\r\n"),
    framed("a chunk ends in a bare line feed", CHUNKED, body=b"5\nabcde\n0\n\n"),
    framed("a chunk's extension has a megabyte", CHUNKED, body=b"5;" + b"x" * 1_000_000 + b"\r\nabcde\r\n0\r\n\r\n"),
    framed("a trailer has a megabyte", CHUNKED, body=b"0\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"),
    framed("there are 10,000 trailers", CHUNKED, body=b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
)

LINES = (
    Bytes("no request at all", b"NONSENSE\r\n\r\n"),
    Bytes("HTTP/0.9", b"GET /v2/health/live\r\n\r\n"),
    Bytes("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    Bytes("HTTP/3.0", b"GET / HTTP/3.0\r\nHost: test\r\n\r\n"),
    Bytes("a version that is no number", b"GET / HTTP/one.one\r\nHost: test\r\n\r\n"),
    Bytes("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))),
    Bytes("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
    Bytes("random bytes", bytes(range(255, 0, -1)) * 8),
    Bytes("NULs", bytes(10_000)),
    Bytes("an unknown method", b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a method in small letters", b"get / HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a method of a megabyte", b"G" * 1_000_000),
    Bytes("two blanks in the request line", b"GET  /v2 HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a tab in the request line", b"GET\t/v2 HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a NUL in the path", b"GET /v2\0 HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a blank in the path", b"GET /v2/a b HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a path of 20,000 letters", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a path of ten megabytes", b"GET /" + b"x" * 10_000_000),
    Bytes("a path that is a fragment", b"GET #v2 HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("a target with a bad port", b"GET http://test:port/v2 HTTP/1.1\r\nHost: test\r\n\r\n"),
    Bytes("CONNECT", b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\n\r\n"),
    Bytes("a field of 20,000 letters", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"),
    Bytes("a field of ten megabytes", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 10_000_000),
    Bytes("a field's name of 20,000 letters", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X" * 20_000 + b": y\r\n\r\n"),
    Bytes("200 fields", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    Bytes("100,000 fields", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 100_000),
    Bytes("a field without a colon", b"GET / HTTP/1.1\r\nHost: test\r\nnonsense\r\n\r\n"),
    Bytes("a field without a name", b"GET / HTTP/1.1\r\nHost: test\r\n: y\r\n\r\n"),
    Bytes("a field whose name has a blank", b"GET / HTTP/1.1\r\nHost: test\r\na b: y\r\n\r\n"),
    Bytes("a field whose name is not ASCII", b"GET / HTTP/1.1\r\nHost: test\r\n\xe9: y\r\n\r\n"),
    Bytes("a field with a NUL", b"GET / HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n"),
    Bytes("a field with a bare carriage return", b"GET / HTTP/1.1\r\nHost: test\r\nX: a\rY: b\r\n\r\n"),
    Bytes("lines that end in carriage returns", b"GET / HTTP/1.1\rHost: test\r\r"),
    Bytes("a folded first field", b"GET / HTTP/1.1\r\n Host: test\r\n\r\n"),
    Bytes(
        "an upgrade to HTTP/2",
        b"GET /nothing HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "no route",
        404,
    ),
    Bytes(
        "an upgrade to a WebSocket",
        b"GET /nothing HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        "no route",
        404,
    ),
    Bytes(
        "a query that is no UTF-8",
        b"GET /nothing?%ff=\xff HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "no route",
        404,
    ),
    Bytes(
        "a name of a model that is no UTF-8",
        b"POST /invocations?model_name=%ff%00%ed HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "no model",
        404,
    ),
    Bytes("an expectation that is unknown", head("Expect: 200-maybe", "Connection: close", LENGTH) + BODY, "", 417),
    Bytes(
        "a target in absolute form, of no route",
        b"GET http://other/nothing HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "no route",
        404,
    ),
    Bytes("an asterisk", b"OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", "no route", 404),
)

ATTACKS = FRAMING + CHUNK + LINES
