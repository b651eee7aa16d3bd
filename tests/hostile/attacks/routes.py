"""Names, versions, methods, types, and what header fields ask for."""

from __future__ import annotations

from hostile.attack import JSON, ROW, TORCHSERVE, V1, V2, Attack, dump, v2

ROWS = dump({"instances": [ROW]})


def named(
    path: str, says: str | tuple[str, ...], status: int = 404, method: str = "POST", body: bytes = b"{}"
) -> Attack:
    """A route."""
    return Attack(f"{method} {path[:60]}", body, says, status, path, JSON if body else None, method=method)


def asked(
    title: str,
    says: str | tuple[str, ...],
    *headers: tuple[str, str],
    status: int = 400,
    path: str = V2,
    body: bytes | None = None,
) -> Attack:
    """A good request with header fields that cannot be honoured."""
    return Attack(title, (v2() if path == V2 else ROWS) if body is None else body, says, status, path, JSON, headers)


def typed(
    title: str, content_type: str | None, says: str, status: int = 415, body: bytes | None = None, path: str = V2
) -> Attack:
    """A good document under another type."""
    return Attack(title, v2() if body is None else body, says, status, path, content_type)


HERE = "this server has"

NAMES = (
    named("/v2/models/other/infer", ("no model 'other' here", HERE)),
    named("/v2/models/other/versions/1/infer", ("no model 'other' here", HERE)),
    named("/v2/models/{model}/versions/2/infer", "has no version '2'; it has '1'"),
    named("/v2/models/{model}/versions/01/infer", "has no version '01'; it has '1'"),
    named("/v2/models/{model}/versions/%31%30/infer", "has no version '10'; it has '1'"),
    named("/v2/models/{model}%2Fversions%2F1/infer", HERE),
    named("/v2/models/..%2f..%2fetc%2fpasswd/infer", "no model '../../etc/passwd' here"),
    named("/v2/models/%00/infer", r"no model '\x00' here"),
    named("/v2/models/%ff%fe/infer", "no model"),
    named("/v2/models/%C3%A9%E2%82%AC/infer", "no model 'é€' here"),
    named("/v2/models/" + "m" * 10_000 + "/infer", "no model 'mmm"),
    named("/v2/models//infer", "no route /v2/models//infer; see GET /v2"),
    named("/v2/models/{model}/infer/", "no route"),
    named("/v2/models/{model}/nothing", "no route"),
    named("/v2/models/{model}/generate", "no route"),
    named("/v2/models/{model}/generate_stream", "no route"),
    named("/v3/models/{model}/infer", "no route"),
    named("/v2/../v2/models/{model}/infers", "no route"),
    named("/" + "x" * 10_000, "no route"),
    named("/v1/models/other:predict", ("no model 'other' here", HERE), body=ROWS),
    named("/v1/models/{model}:explain", "this server explains no predictions", 501, body=ROWS),
    named("/v1/models/{model}:classify", "no route", body=ROWS),
    named("/v1/models/{model}", "POST is not allowed", 405, body=ROWS),
    named("/v1/models/{model}/versions/1:predict", "no route", body=ROWS),
    named("/predictions/other", ("no model 'other' here", HERE), body=ROWS),
    named("/predictions/{model}/2.0", "has no version '2.0'; it has '1'", body=ROWS),
    named("/predictions/{model}/1/2", "no route", body=ROWS),
    named("/predictions", "no route", body=ROWS),
    named("/invocations?model_name=other", ("no model 'other' here", HERE), body=ROWS),
    named("/explanations/{model}", "this server explains no predictions", 501, body=ROWS),
    named("/models/other", "no model 'other' here", method="GET", body=b""),
    named("/models/{model}/2", "has no version '2'", method="GET", body=b""),
    named("/v2/models/other", "no model 'other' here", method="GET", body=b""),
    named("/v2/models/{model}/stats", "see GET /metrics", 501, "GET", b""),
    named("/v2/repository/models/{model}/load", "models are not loaded by requests", 501),
    named("/v2/repository/models/{model}/unload", "models are not loaded by requests", 501),
    named("/v2/repository/models/{model}/delete", "no route"),
    named("/v2/repository/index", "body: Object contains unknown field `name`", 400, body=b'{"name": "x"}'),
    named("/v2/repository/index", "body: Expected `bool`, got `str` - at `$.ready`", 400, body=b'{"ready": "yes"}'),
)

METHODS = tuple(
    named(path, (f"{method} is not allowed", allowed), 405, method, b"")
    for method, path, allowed in (
        ("GET", V2, "POST is"),
        ("PUT", V2, "POST is"),
        ("DELETE", V2, "POST is"),
        ("PATCH", V1, "POST is"),
        ("GET", V1, "POST is"),
        ("DELETE", TORCHSERVE, "GET or POST or PUT is"),
        ("POST", "/v2", "GET"),
        ("POST", "/metrics", "GET"),
        ("POST", "/ping", "GET"),
        ("PUT", "/v2/health/ready", "GET"),
        ("TRACE", "/", "GET"),
    )
)

TYPES = (
    typed(
        "the type is a picture's",
        "image/png",
        "Content-Type image/png: must be application/json or application/x-npy or application/vnd.safetensors",
    ),
    typed("the type is a text's", "text/plain", "Content-Type text/plain: must be application/json"),
    typed("the type is a form's", "multipart/form-data; boundary=x", "must be application/json"),
    typed("the type is protobuf", "application/x-protobuf", "must be application/json"),
    typed("the type is a pickle", "application/x-pickle", "must be application/json"),
    typed("the type is nonsense", "=;;=,,", "must be application/json"),
    typed("the type is a word", "json", "must be application/json"),
    typed("the type has a thousand letters", "application/" + "x" * 1000, "must be application/json"),
    typed("the type is not ASCII", "application/\xe9", "must be application/json"),
    typed("the type is empty, and so is the body", "", "body: is empty, must be a JSON document", 400, b""),
    typed("the type is missing, and the body is no JSON", None, "body: JSON is malformed", 400, b"abc"),
    typed(
        "the type is a cloud event's, by V1",
        "application/cloudevents+json",
        "must be application/json",
        body=ROWS,
        path=V1,
    ),
)

HEADERS = (
    asked(
        "Accept is HTML",
        "Accept 'text/html': this route answers in application/json, application/octet-stream",
        ("Accept", "text/html"),
        status=406,
    ),
    asked("Accept refuses everything", "this route answers in application/json", ("Accept", "*/*;q=0"), status=406),
    asked(
        "Accept refuses JSON, by V1",
        "this route answers in application/json",
        ("Accept", "application/json;q=0"),
        status=406,
        path=V1,
    ),
    asked("Accept is nonsense", "this route answers in application/json", ("Accept", ",,,;;;q=q"), status=406),
    asked("Accept has 10,000 commas", "this route answers in application/json", ("Accept", "," * 10_000), status=406),
    asked(
        "Accept has 10,000 parameters",
        "this route answers in application/json",
        ("Accept", "a/b" + ";q=0" * 2_500),
        status=406,
    ),
    asked(
        "Accept has a quality that is no number",
        "this route answers in",
        ("Accept", "application/json;q=nan"),
        status=406,
    ),
    asked(
        "Accept is HTML, by TorchServe's route",
        "this route answers in application/json",
        ("Accept", "text/html"),
        status=406,
        path=TORCHSERVE,
    ),
    asked(
        "the deadline is a word",
        "header X-Request-Timeout-Milliseconds: got 'soon', must be whole milliseconds, 1 or more",
        ("X-Request-Timeout-Milliseconds", "soon"),
    ),
    asked(
        "the deadline is zero",
        "got '0', must be whole milliseconds, 1 or more",
        ("X-Request-Timeout-Milliseconds", "0"),
    ),
    asked("the deadline is negative", "got '-1', must be whole milliseconds", ("X-Request-Timeout-Milliseconds", "-1")),
    asked(
        "the deadline is a fraction", "got '1.5', must be whole milliseconds", ("X-Request-Timeout-Milliseconds", "1.5")
    ),
    asked("the deadline is empty", "got '', must be whole milliseconds", ("X-Request-Timeout-Milliseconds", "")),
    asked(
        "the deadline has an exponent",
        "got '1e3', must be whole milliseconds",
        ("X-Request-Timeout-Milliseconds", "1e3"),
    ),
    asked("the deadline has 10,000 digits", "got '999", ("X-Request-Timeout-Milliseconds", "9" * 10_000)),
    asked("the deadline is a superscript", "must be whole milliseconds", ("X-Request-Timeout-Milliseconds", "1\u00b2")),
    asked(
        "Envoy's deadline is a word",
        "header x-envoy-expected-rq-timeout-ms: got 'soon'",
        ("x-envoy-expected-rq-timeout-ms", "soon"),
    ),
    asked("a deadline is a word, by V1", "got 'soon'", ("X-Request-Timeout-Milliseconds", "soon"), path=V1),
    asked(
        "a deadline is a word, by TorchServe's route",
        "got 'soon'",
        ("X-Request-Timeout-Milliseconds", "soon"),
        path=TORCHSERVE,
    ),
)

ATTACKS = NAMES + METHODS + TYPES + HEADERS
