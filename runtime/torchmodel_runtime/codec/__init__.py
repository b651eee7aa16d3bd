"""Bytes to tensors and back, for each dialect: Open Inference V2, KServe V1, TorchServe predictions.

`server.infer` calls `decode_request` before the queue, so that whatever is wrong with a body fails that client alone, and
`encode_response` after it. One module a dialect says what its documents look like (`v2`, `v1`, `torchserve`), `bodies` reads
what is no document (a medium), `jsontensors` makes arrays of the data in JSON.

JSON has no form for NaN and infinities (RFC 8259, 6). In requests they are refused. In answers they become null, as msgspec
and JavaScript's JSON.stringify write them: one masked logit must not cost the caller the rest of the answer.
"""

from __future__ import annotations

from torchmodel_runtime.codec import bodies, torchserve, v1, v2
from torchmodel_runtime.codec.decoded import Decoded
from torchmodel_runtime.codec.plan import Plan, make_plan
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer, Call, Dialect
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

__all__ = ["Decoded", "Plan", "decode_request", "encode_error", "encode_response", "make_plan"]


def decode_request(call: Call, plan: Plan) -> Decoded:
    """Parse and check a body; RequestError 400, 413 or 415 says what does not fit the model's signature and limits."""
    if bodies.is_medium(call, plan):
        return bodies.decode_medium(call.body)
    if call.dialect == "v2":
        return v2.decode(call, plan)
    return v1.decode(call, plan)


def encode_response(call: Call, decoded: Decoded, plan: Plan, task: Task, outputs: Arrays) -> Answer:
    """The answer in the call's dialect: V2 tensors, V1 `predictions` by row, or the task's own reply."""
    if call.dialect == "v2":
        return v2.encode(decoded, plan, outputs)
    if call.dialect == "v1":
        return v1.encode(task.rows(outputs))
    return torchserve.encode(task.reply(outputs, single=decoded.is_medium))


def encode_error(dialect: Dialect, error: RequestError) -> Answer:
    """An error as the dialect's clients expect it."""
    answer = torchserve.encode_error(error) if dialect == "torchserve" else v2.encode_error(error)
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(error.retry_after_s)
    return answer
