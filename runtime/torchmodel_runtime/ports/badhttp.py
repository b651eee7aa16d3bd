"""What is no HTTP, in words for whoever sent it: aiohttp's parser errors without the bytes that they quote. Called by `hotroute`.

The client's own bytes are not repeated: what answers to anything that is sent is a mirror for others to point at. Pure.
"""

from __future__ import annotations

from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, InvalidHeader, LineTooLong

from torchmodel_runtime.errors import RequestError, malformed

_WHAT = "this is no valid HTTP/1.1 (RFC 9112)"


def explain_malformed(error: BaseException, max_header_bytes: int) -> RequestError:
    """RequestError 400 for an error of aiohttp's parser."""
    message = error.message if isinstance(error, HttpProcessingError) else ""
    if isinstance(error, LineTooLong):
        return malformed(
            f"the request line or a header field has more than {max_header_bytes} bytes (serving.limits.maxHeaderBytes)"
        )
    if isinstance(error, InvalidHeader):
        return malformed(f"{_WHAT}: a header field holds what none may hold")
    if message == "Received HTTPS traffic on an HTTP port":
        return malformed("this looks like TLS, which this port does not speak: use http://")
    words, colon, _ = message.partition(":\n\n")
    if words == "Pause on PRI/Upgrade":
        return malformed("this looks like HTTP/2, which this port does not speak: use HTTP/1.1")
    if (
        colon or type(error) is BadHttpMessage
    ):  # the parser's own words: what it quotes follows a colon and an empty line
        return malformed(f"{_WHAT}: {' '.join(words.split()).rstrip('.')}")
    return malformed(f"{_WHAT}: the request line cannot be read")
