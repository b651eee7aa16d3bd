"""Bytes to tensors and back, for each dialect: Open Inference V2, KServe V1, TorchServe predictions.

`server.infer` calls `decode_request` before the queue, so that whatever is wrong with a body fails that client alone, and
`encode_response` after it. One module a dialect says what its documents look like (`v2`, `v1`, `torchserve`); `bodies` says what
a body is, `arrayfiles` reads npy and safetensors, `forms` multipart; `jsontensors` and `rawtensors` make arrays of one
tensor's data. `inflate` comes before all of them, `negotiation` says in what form the answer goes out. V2 in gRPC's messages is
a way of its own, by `v2messages`, which is imported with the first of them: it needs the extra [grpc].

JSON has no form for NaN and infinities (RFC 8259, 6). In requests they are refused. In answers they become null, as msgspec
and JavaScript's JSON.stringify write them: one masked logit must not cost the caller the rest of the answer. Binary forms
carry them both ways.
"""

from __future__ import annotations

from dataclasses import replace

from torchmodel_runtime.codec import arrayfiles, bodies, inflate, torchserve, v1, v2
from torchmodel_runtime.codec.decoded import Decoded
from torchmodel_runtime.codec.negotiation import choose_form, offered_forms
from torchmodel_runtime.codec.plan import Plan, make_plan
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer, Call, Dialect
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

__all__ = ["HEADERS", "Decoded", "Plan", "decode_request", "encode_error", "encode_response", "is_heavy", "make_plan"]

HEADERS = ("Accept", "Content-Encoding", "Content-Type", v2.JSON_LENGTH)
"""The header fields that decoding reads."""

LIGHT_BYTES = 4096
"""Whatever a body of this size holds, it is decoded in a millisecond."""
HEAVY_JSON_BYTES = 64 * 1024
"""JSON from here on may take more than two milliseconds to decode, in which no other request moves."""
HEAVY_BRACKETS = 1024
"""And from so many lists and objects on, whatever its size: V1's rows by name take a microsecond each."""
HEAVY_INFLATED_BYTES = 16 * 1024
"""A compressed body that becomes larger is not even inflated on the event loop."""


def is_heavy(call: Call, plan: Plan) -> bool:
    """True when decoding takes so long that it must leave the event loop."""
    if call.dialect == "grpc":
        from torchmodel_runtime.codec import v2messages

        return v2messages.is_heavy(call.body)
    try:
        if "Content-Encoding" in call.headers:
            if len(call.body) > LIGHT_BYTES:
                return True
            call = replace(call, body=inflate.inflate_body(call, HEAVY_INFLATED_BYTES))
        if len(call.body) <= LIGHT_BYTES:
            return False
        if v2.JSON_LENGTH in call.headers:
            return _is_heavy_json(v2.split_body(call.body, call.headers[v2.JSON_LENGTH])[0].tobytes())
        kind = bodies.classify(call, plan)
        if kind == "npy":
            return arrayfiles.is_heavy(call.body)
        return kind in ("json", "form") and _is_heavy_json(call.body)
    except RequestError as error:
        return error.status == 413  # it inflates to too much; others decoding raises again


def _is_heavy_json(body: bytes) -> bool:
    return len(body) > HEAVY_JSON_BYTES or body.count(b"[") + body.count(b"{") > HEAVY_BRACKETS


def decode_request(call: Call, plan: Plan) -> Decoded:
    """Parse and check a body; RequestError 400, 406, 413 or 415 says what does not fit the model's signature and limits."""
    if call.is_plain:
        bodies.check_looks_like_json(call, plan)
        return v2.decode(call, plan) if call.dialect == "v2" else v1.decode(call, plan)
    if call.dialect == "grpc":
        from torchmodel_runtime.codec import v2messages

        return v2messages.decode(call, plan)
    headers = call.headers
    if "Content-Encoding" in headers:
        call = replace(call, body=inflate.inflate_body(call, plan.max_bytes))
    decoded = _decode_body(call, plan)
    if "Accept" in headers and not decoded.has_own_form:
        decoded.form = choose_form(call.headers, call.dialect, plan, decoded)
    return decoded


def _decode_body(call: Call, plan: Plan) -> Decoded:
    kind = bodies.classify(call, plan)
    if kind == "json":
        bodies.check_looks_like_json(call, plan)
        return v2.decode(call, plan) if call.dialect == "v2" else v1.decode(call, plan)
    if kind == "medium":
        return bodies.decode_medium(call.body)
    if kind == "form":
        return torchserve.decode_form(call, plan, _decode_body)
    decoded = (
        arrayfiles.decode_npy(call.body, plan) if kind == "npy" else arrayfiles.decode_safetensors(call.body, plan)
    )
    if kind in offered_forms(call.dialect, plan):
        decoded.form = kind
    return decoded


def encode_response(call: Call, decoded: Decoded, plan: Plan, task: Task, outputs: Arrays) -> Answer:
    """The answer in the call's dialect and the form asked for: V2 tensors, V1 `predictions` by row, the task's own reply."""
    if call.dialect == "grpc":
        from torchmodel_runtime.codec import v2messages

        return v2messages.encode(decoded, plan, outputs)
    if decoded.form == "npy":
        return arrayfiles.encode_npy(decoded, plan, outputs)
    if decoded.form == "safetensors":
        return arrayfiles.encode_safetensors(decoded, plan, outputs)
    if call.dialect == "v2":
        return v2.encode(decoded, plan, outputs)
    if call.dialect == "v1":
        return v1.encode(task.rows(outputs))
    return torchserve.encode(task.reply(outputs, single=decoded.is_medium))


def encode_error(dialect: Dialect, error: RequestError) -> Answer:
    """An error as the dialect's clients expect it."""
    if dialect == "grpc":
        from torchmodel_runtime.codec import v2messages

        answer = v2messages.encode_error(error)
    else:
        answer = torchserve.encode_error(error) if dialect == "torchserve" else v2.encode_error(error)
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    if error.code == inflate.UNSUPPORTED:
        answer.headers["Accept-Encoding"] = ", ".join(inflate.ENCODINGS)  # RFC 9110, 15.5.16
    return answer
