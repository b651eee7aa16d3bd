"""What can go wrong, in two families: a request that is refused, and a start that fails.

Raised anywhere in the runtime. `Server.refuse` alone turns a `RequestError` into an answer, in the dialect's own form; the ports,
`Server.answer` and `passage` catch it and call that. `__main__` alone turns a `StartError` into an exit code. Every code that a
client can meet is made here or in `codec`, and explained in docs/reference/http.md. Knows no dialect and no HTTP library.
"""

from __future__ import annotations

import reprlib

from torchmodel_runtime.config import EXIT_PERMANENT, Failure

MAX_MESSAGE = 1000
"""Characters of a sentence for the client, which may quote what the client sent."""

_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = 100
_QUOTED.maxlong = 40
_QUOTED.maxlist = _QUOTED.maxdict = 8


def quote(value: object) -> str:
    """What a client sent, as a sentence says it: as repr, and short whatever it is."""
    try:
        return _QUOTED.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"


class RequestError(Exception):
    """A request that gets no answer: an HTTP status, a stable code for logs and metrics, a sentence for the client.

    retry_after_s: where whoever raises it knows; else `Server.refuse` says what can be said.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
        if not message.isascii():  # header fields that are no UTF-8 come as surrogates, which have no form in JSON
            message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def invalid(message: str) -> RequestError:
    """The request says something that this model cannot take; sending it again will not help."""
    return RequestError(400, "INVALID_ARGUMENT", message)


def malformed(message: str) -> RequestError:
    """What came is no HTTP; the connection closes after the answer."""
    return RequestError(400, "MALFORMED_REQUEST", message)


def not_found(message: str) -> RequestError:
    """No such route, or another model's name."""
    return RequestError(404, "NOT_FOUND", message)


def body_too_slow(limit_s: float) -> RequestError:
    """The client did not send its whole request in time."""
    return RequestError(
        408, "BODY_TIMEOUT", f"the body did not arrive within {limit_s:g} s (serving.limits.bodyTimeoutSeconds)"
    )


def too_large(message: str) -> RequestError:
    """The body, the medium inside it or its row count is over a limit."""
    return RequestError(413, "TOO_LARGE", message)


def too_many_rows(rows: int, limit: int) -> RequestError:
    """The request would not fit the queue if it were empty."""
    return too_large(f"the request has {rows} rows, the queue takes at most {limit} (serving.queue.maxRows)")


def too_many_bytes(size_bytes: int, limit: int) -> RequestError:
    """As `too_many_rows`."""
    return too_large(
        f"the request's tensors have {size_bytes} bytes, the queue takes at most {limit} (serving.queue.maxBytes)"
    )


def too_large_to_hold(size_bytes: int, limit: int) -> RequestError:
    """The request would need more memory than all requests together may hold."""
    return too_large(
        f"the request, as it is decoded, holds {size_bytes} bytes, all requests together at most {limit} "
        "(serving.limits.maxBytesInFlight)"
    )


def no_room(held_bytes: int, limit: int) -> RequestError:
    """Requests on their way hold too much memory already; the client should come back later."""
    message = f"requests on their way hold {held_bytes} of {limit} bytes already (serving.limits.maxBytesInFlight)"
    return RequestError(429, "NO_ROOM", message)


def unsupported_media(message: str) -> RequestError:
    """The body is of a type that this endpoint does not take."""
    return RequestError(415, "UNSUPPORTED_MEDIA_TYPE", message)


def queue_full(queued: int, limit: int, retry_after_s: int, unit: str = "rows") -> RequestError:
    """Too much waits already; the client should come back later."""
    message = f"the queue is full: {queued} of {limit} {unit} wait already; try again in {retry_after_s} s"
    return RequestError(429, "QUEUE_FULL", message, retry_after_s)


def too_late(finish_s: float, timeout_s: float, retry_after_s: int) -> RequestError:
    """What waits already takes longer than the request has: refused at once instead of at its deadline."""
    message = f"an answer is expected after {finish_s:.3g} s, the request has {timeout_s:.3g} s; try again in {retry_after_s} s"
    return RequestError(429, "TOO_BUSY", message, retry_after_s)


def model_failed() -> RequestError:
    """The model raised on this input. Says nothing internal: the log has the traceback."""
    return RequestError(500, "MODEL_FAILED", "the model failed on this request; the server's log says why")


def model_out_of_memory() -> RequestError:
    """The model ran out of memory on this request alone. Smaller ones go on (507: RFC 4918, section 11.5)."""
    return RequestError(
        507, "MODEL_OUT_OF_MEMORY", "the model ran out of memory on this request; send fewer or smaller rows"
    )


def internal() -> RequestError:
    """A defect of ours. Says nothing internal: the log has the traceback."""
    return RequestError(500, "INTERNAL", "internal error")


def unavailable(message: str) -> RequestError:
    """Not ready yet, or no longer: another replica, or a later try, may answer."""
    return RequestError(503, "UNAVAILABLE", message)


def timed_out(timeout_s: float) -> RequestError:
    """No answer within serving.requestTimeoutSeconds, or within what the client gave."""
    return RequestError(
        504, "TIMEOUT", f"no answer within {timeout_s:.4g} s (serving.requestTimeoutSeconds, or the request's own)"
    )


class StartError(Exception):
    """A start that failed: what ends up in the termination log, and whether trying again may help."""

    def __init__(self, reason: str, message: str, next_step: str, exit_code: int = EXIT_PERMANENT) -> None:
        super().__init__(f"{reason}: {message}")
        self.failure = Failure(reason=reason, message=message, next_step=next_step)
        self.exit_code = exit_code
