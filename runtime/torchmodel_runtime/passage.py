"""One small call on its way, told in two halves instead of a coroutine: `begin` is what `Server.infer` does before the batch,
the rest is what it does after it.

A task, a future and six nested coroutines cost as much as everything else that a small request needs. So calls whose steps take
no time of their own (`is_quick`) come this way: the same steps, in the same order, by the same functions. `ports.hotroute`
calls `begin` and, when the client leaves, `abandon`; everything else goes by `Server.answer`. On the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from torchmodel_runtime import codec
from torchmodel_runtime.batcher import Batcher
from torchmodel_runtime.codec import Decoded
from torchmodel_runtime.deadlines import choose_timeout_s
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.server import Server
from torchmodel_runtime.startup import LoadedModel
from torchmodel_runtime.tasks import Work
from torchmodel_runtime.tensors import Arrays
from torchmodel_runtime.tickets import Ticket

Reply = Callable[[Answer], None]


def is_quick(server: Server, call: Call) -> bool:
    """True when no step of the call but the batch takes long enough to leave the event loop for."""
    model = server.model
    return model is None or (not model.task.media and not codec.is_heavy(call, server.plan))


class Passage:
    """A call from its arrival to its reply."""

    __slots__ = ("_batcher", "_call", "_decoded", "_model", "_reply", "_seen", "_server", "_ticket", "_work")

    def __init__(self, server: Server, call: Call, reply: Reply) -> None:
        """reply gets the answer, whatever it is, perhaps before `begin` returns."""
        self._server = server
        self._call = call
        self._reply = reply
        self._seen = server.telemetry.begin(call.dialect, call.headers)
        self._ticket: Ticket | None = None
        self._batcher: Batcher
        self._model: LoadedModel
        self._decoded: Decoded
        self._work: Work

    def begin(self) -> None:
        """Admit, decode, prepare, queue."""
        server, call, seen = self._server, self._call, self._seen
        server.enter()
        try:
            server.check_open(call)
            model, batcher = server.admit(call.model, call.version)
            seen.request_bytes = len(call.body)
            timeout_s: float = server.config.serving.request_timeout_seconds
            if not call.is_plain:
                timeout_s = choose_timeout_s(call.headers, {}, timeout_s)
            decoded = codec.decode_request(call, server.plan)
            if decoded.parameters:
                timeout_s = choose_timeout_s({}, decoded.parameters, timeout_s)
            call.body = b""  # what waits is what was made of it
            seen.decoded_s = monotonic()
            seen.deadline_s = seen.started_s + timeout_s
            work = model.task.prepare(decoded.inputs)
            seen.prepared_s = monotonic()
            self._batcher, self._model, self._decoded, self._work = batcher, model, decoded, work
            self._ticket = batcher.put(work.parts, seen.deadline_s, seen, self._end)
        except Exception as error:  # noqa: BLE001 - `explain` tells them apart
            self._fail(error)

    def abandon(self) -> None:
        """The client left: what is not computed yet never will be, and nobody gets a reply."""
        if self._ticket is not None and self._ticket.is_open:
            self._batcher.withdraw(self._ticket)
            self._server.leave(self._seen, None)

    def _end(self, results: list[Arrays], error: Exception | None) -> None:
        """Finish, encode, reply."""
        if error is not None:
            self._fail(error)
            return
        task = self._model.task
        try:
            outputs = task.finish(self._work, results)
            self._seen.finished_s = monotonic()
            answer = codec.encode_response(self._call, self._decoded, self._server.plan, task, outputs)
        except Exception as caught:  # noqa: BLE001 - as above
            self._fail(caught)
            return
        self._server.leave(self._seen, answer)
        self._reply(answer)

    def _fail(self, error: Exception) -> None:
        answer = self._server.explain(self._seen, error)
        self._server.leave(self._seen, answer)
        self._reply(answer)
