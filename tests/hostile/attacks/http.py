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
    says: str
    status: int = 400


NO_HTTP = "this is no valid HTTP/1.1 (RFC 9112)"
LINE = "the request line or a header field has more than 16384 bytes (serving.limits.maxHeaderBytes)"


def head(*lines: str, path: str = PATH, method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    """A request's head."""
    return "\r\n".join(
        [f"{method} {path} {version}", "Host: test", "Content-Type: application/json", *lines, "", ""]
    ).encode("latin-1")


def framed(title: str, *lines: str, says: str, body: bytes = BODY) -> Bytes:
    """A request whose framing is wrong, and one that a wrong reader would take out of it."""
    return Bytes(title, head(*lines) + body + SMUGGLED, f"{NO_HTTP}: {says}")


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)

FRAMING = (
    framed(
        "a length and chunks",
        LENGTH,
        CHUNKED,
        body=CHUNKS,
        says="Transfer-Encoding can't be present with Content-Length",
    ),
    framed(
        "chunks and a length",
        CHUNKED,
        "Content-Length: 4",
        body=CHUNKS,
        says="Content-Length can't be present with Transfer-Encoding",
    ),
    framed("two lengths that differ", LENGTH, "Content-Length: 0", says="Duplicate Content-Length"),
    framed("two lengths that are equal", LENGTH, LENGTH, says="Duplicate Content-Length"),
    framed("two lengths in one field", "Content-Length: 5, 5", says="Invalid character in Content-Length"),
    framed("a negative length", "Content-Length: -1", says="Invalid character in Content-Length"),
    framed("a length with a sign", f"Content-Length: +{len(BODY)}", says="Invalid character in Content-Length"),
    framed("a hexadecimal length", "Content-Length: 0x10", says="Invalid character in Content-Length"),
    framed("a length with a fraction", "Content-Length: 5.0", says="Invalid character in Content-Length"),
    framed("a length with an underscore", "Content-Length: 1_0", says="Invalid character in Content-Length"),
    framed("a length that is a word", "Content-Length: many", says="Invalid character in Content-Length"),
    framed("a length that is empty", "Content-Length:", says="Empty Content-Length"),
    framed("a length beyond 64 bits", "Content-Length: 18446744073709551617", says="Content-Length overflow"),
    framed("a length in superscript", "Content-Length: 1\u00b2", says="Invalid character in Content-Length"),
    framed("chunks that come twice", CHUNKED, CHUNKED, body=CHUNKS, says="Invalid `Transfer-Encoding` header value"),
    framed(
        "chunks that are not last",
        "Transfer-Encoding: chunked, gzip",
        body=CHUNKS,
        says="Invalid `Transfer-Encoding` header value",
    ),
    framed(
        "chunks of an unknown kind",
        "Transfer-Encoding: xchunked",
        body=CHUNKS,
        says="Request has invalid `Transfer-Encoding`",
    ),
    framed(
        "identity chunks", "Transfer-Encoding: identity", body=CHUNKS, says="Request has invalid `Transfer-Encoding`"
    ),
    framed(
        "chunks named with a tab before them",
        "Transfer-Encoding:\tchunked, identity",
        body=CHUNKS,
        says="Invalid `Transfer-Encoding` header value",
    ),
    framed("chunks named after a blank", "Transfer-Encoding : chunked", body=CHUNKS, says="Invalid header field char"),
    framed("a length named after a blank", f"Content-Length : {len(BODY)}", says="Invalid header field char"),
    framed(
        "a field that is folded",
        "X: a",
        " Transfer-Encoding: chunked",
        LENGTH,
        says="Unexpected whitespace after header value",
    ),
    Bytes(
        "chunks by HTTP/1.0",
        head(CHUNKED, version="HTTP/1.0") + CHUNKS + SMUGGLED,
        f"{NO_HTTP}: Data after `Connection: close`",
    ),
)

CHUNK = (
    framed("a chunk's size is no number", CHUNKED, body=b"many\r\n" + BODY, says="Invalid character in chunk size"),
    framed("a chunk's size is negative", CHUNKED, body=b"-1\r\n" + BODY, says="Invalid character in chunk size"),
    framed(
        "a chunk's size has a sign", CHUNKED, body=b"+5\r\nabcde\r\n0\r\n\r\n", says="Invalid character in chunk size"
    ),
    framed("a chunk's size is 0x5", CHUNKED, body=b"0x5\r\nabcde\r\n0\r\n\r\n", says="Invalid character in chunk size"),
    framed("a chunk's size is beyond 64 bits", CHUNKED, body=b"f" * 17 + b"\r\nabc", says="Chunk size overflow"),
    framed("a chunk's size is empty", CHUNKED, body=b"\r\nabc\r\n", says="Invalid character in chunk size"),
    framed(
        "a chunk is longer than it says", CHUNKED, body=b"2\r\nabcde\r\n0\r\n\r\n", says="Expected LF after chunk data"
    ),
    framed(
        "a chunk ends in a bare line feed",
        CHUNKED,
        body=b"5\nabcde\n0\n\n",
        says="Missing expected CR after chunk size",
    ),
    Bytes("a trailer has a megabyte", head(CHUNKED) + b"0\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n" + SMUGGLED, LINE),
    framed(
        "there are 10,000 trailers",
        CHUNKED,
        body=b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        says="Too many headers received",
    ),
)

LINES = (
    Bytes("no request at all", b"NONSENSE\r\n\r\n", f"{NO_HTTP}: Invalid method encountered"),
    Bytes(
        "HTTP/2's preface",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "this looks like HTTP/2, which this port does not speak: use HTTP/1.1",
    ),
    Bytes("HTTP/3.0", b"GET / HTTP/3.0\r\nHost: test\r\n\r\n", f"{NO_HTTP}: Bad status line: Invalid HTTP version"),
    Bytes(
        "a version that is no number",
        b"GET / HTTP/one.one\r\nHost: test\r\n\r\n",
        f"{NO_HTTP}: Bad status line: Invalid major version",
    ),
    Bytes(
        "TLS",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        "this looks like TLS, which this port does not speak: use http://",
    ),
    Bytes("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", f"{NO_HTTP}: Invalid method"),
    Bytes("random bytes", bytes(range(255, 0, -1)) * 8, f"{NO_HTTP}: Invalid method"),
    Bytes("NULs", bytes(10_000), f"{NO_HTTP}: Invalid method"),
    Bytes("an unknown method", b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n", f"{NO_HTTP}: Invalid method"),
    Bytes("a method in small letters", b"get / HTTP/1.1\r\nHost: test\r\n\r\n", f"{NO_HTTP}: Invalid method"),
    Bytes("a method of a megabyte", b"G" * 1_000_000, f"{NO_HTTP}: Invalid method"),
    Bytes(
        "a tab in the request line",
        b"GET\t/v2 HTTP/1.1\r\nHost: test\r\n\r\n",
        f"{NO_HTTP}: Expected space after method",
    ),
    Bytes("a NUL in the path", b"GET /v2\0 HTTP/1.1\r\nHost: test\r\n\r\n", f"{NO_HTTP}: Invalid char in url path"),
    Bytes("a blank in the path", b"GET /v2/a b HTTP/1.1\r\nHost: test\r\n\r\n", f"{NO_HTTP}: Bad status line"),
    Bytes("a path of 20,000 letters", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", LINE),
    Bytes("a path of ten megabytes", b"GET /" + b"x" * 10_000_000, LINE),
    Bytes(
        "a path that is a fragment",
        b"GET #v2 HTTP/1.1\r\nHost: test\r\n\r\n",
        f"{NO_HTTP}: Unexpected start char in url",
    ),
    Bytes(
        "a target with a bad port",
        b"GET http://test:port/v2 HTTP/1.1\r\nHost: test\r\n\r\n",
        f"{NO_HTTP}: the request line cannot be read",
    ),
    Bytes("CONNECT", b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n", "no route", 404),
    Bytes("a field of 20,000 letters", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", LINE),
    Bytes("a field of ten megabytes", b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 10_000_000, LINE),
    Bytes(
        "a field's name of 20,000 letters", b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X" * 20_000 + b": y\r\n\r\n", LINE
    ),
    Bytes(
        "200 fields",
        b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        f"{NO_HTTP}: Too many headers received",
    ),
    Bytes(
        "100,000 fields",
        b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 100_000,
        f"{NO_HTTP}: Too many headers received",
    ),
    Bytes(
        "a field without a colon",
        b"GET / HTTP/1.1\r\nHost: test\r\nnonsense\r\n\r\n",
        f"{NO_HTTP}: Invalid header token",
    ),
    Bytes("a field without a name", b"GET / HTTP/1.1\r\nHost: test\r\n: y\r\n\r\n", f"{NO_HTTP}: Invalid header token"),
    Bytes(
        "a field whose name has a blank",
        b"GET / HTTP/1.1\r\nHost: test\r\na b: y\r\n\r\n",
        f"{NO_HTTP}: Invalid header token",
    ),
    Bytes(
        "a field whose name is not ASCII",
        b"GET / HTTP/1.1\r\nHost: test\r\n\xe9: y\r\n\r\n",
        f"{NO_HTTP}: Invalid header token",
    ),
    Bytes(
        "a field with a NUL",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n",
        f"{NO_HTTP}: Invalid header value char",
    ),
    Bytes(
        "a field with a bare carriage return",
        b"GET / HTTP/1.1\r\nHost: test\r\nX: a\rY: b\r\n\r\n",
        f"{NO_HTTP}: Missing expected LF after header value",
    ),
    Bytes(
        "lines that end in carriage returns",
        b"GET / HTTP/1.1\rHost: test\r\r",
        f"{NO_HTTP}: Expected CRLF after version",
    ),
    Bytes(
        "a folded first field",
        b"GET / HTTP/1.1\r\n Host: test\r\n\r\n",
        f"{NO_HTTP}: Unexpected space after start line",
    ),
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
        b"GET /nothing?%ff=\xff HTTP/1.1\r\nHost: test\r\n\r\n",
        f"{NO_HTTP}: Invalid char in url query",
    ),
    Bytes(
        "a name of a model that is no UTF-8",
        b"POST /invocations?model_name=%ff%00%ed HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "no model",
        404,
    ),
    Bytes(
        "an expectation that is unknown",
        head("Expect: 200-maybe", "Connection: close", LENGTH) + BODY,
        "must be 100-continue",
        417,
    ),
    Bytes(
        "a target in absolute form, of no route",
        b"GET http://other/nothing HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "no route",
        404,
    ),
    Bytes("an asterisk", b"OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", "no route", 404),
)

ATTACKS = FRAMING + CHUNK + LINES
