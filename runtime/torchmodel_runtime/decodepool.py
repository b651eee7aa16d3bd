"""Decodes large bodies in a process of its own, so that the event loop does not stand still for them.

A JSON body of 3 MB takes some forty milliseconds of Python, under the interpreter's lock, so a thread would not help. `server`
asks a `DecodePool` for every call that `codec.is_heavy` names; the helper (this module run by itself) knows numpy and msgspec, no
torch. It is started by the first such call, answers one after the other, is started again when it has died, and ends when the
socket to its server closes, however that came about.

On the socket: for a call a pickled head (the call without its body) and the body; for the answer a pickled head and the arrays'
bytes, one message each, so that nothing large is copied by pickle. Each side only ever reads what its own other half wrote.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from torchmodel_runtime import codec, errors
from torchmodel_runtime.codec import Decoded, Plan
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Call

logger = logging.getLogger(__name__)

NICENESS = 10
"""Large bodies give way to the event loop's many small ones, and to batches (`workers.NICENESS`), where all CPUs are busy."""


class DecodePool:
    """The helper process as its server sees it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # one thread, which waits on the socket without the interpreter's lock; what waits for it can still be cancelled
        self._thread = ThreadPoolExecutor(1, "decode")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    async def decode(self, call: Call) -> Decoded:
        """As `codec.decode_request`; RequestError 503 when the helper died over this body."""
        needed = {name: call.headers[name] for name in codec.HEADERS if name in call.headers}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask, replace(call, headers=needed))

    def close(self) -> None:
        """End the helper."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _ask(self, call: Call) -> Decoded:
        """In the thread: send, receive."""
        try:
            connection = self._connect()
            connection.send_bytes(pickle.dumps(replace(call, body=b"")))
            connection.send_bytes(call.body)
            kind, content, buffers = pickle.loads(connection.recv_bytes())  # noqa: S301 - written by `_reply` below
            pieces = [connection.recv_bytes() for _ in range(buffers)]
        except (EOFError, OSError) as error:
            self._end()
            logger.error("the decoding process ended on a request: %r", error)
            raise errors.unavailable("the process that decodes large bodies ended on this one") from None
        if kind == "error":
            raise RequestError(**content)
        decoded: Decoded = pickle.loads(content, buffers=pieces)  # noqa: S301
        return decoded

    def _connect(self) -> Connection:
        """The connection to a helper that is alive."""
        if self._connection is not None and self._process is not None and self._process.poll() is None:
            return self._connection
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            # without the allocator's settings of `__main__`, which are for torch: what a large body took is given back
            variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=variables
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(pickle.dumps(self._plan))
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()  # it holds nothing that needs an orderly end
            self._process.wait()
        self._connection = self._process = None


def serve_socket(descriptor: int) -> None:
    """In the helper: answer until the server closes the socket."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the server says when to end
    connection = Connection(descriptor)
    try:
        plan: Plan = pickle.loads(connection.recv_bytes())  # noqa: S301 - written by `_connect` above
        while True:
            call: Call = pickle.loads(connection.recv_bytes())  # noqa: S301 - written by `_ask` above
            call.body = connection.recv_bytes()
            _reply(connection, call, plan)
            del call
    except (EOFError, OSError):
        return


def _reply(connection: Connection, call: Call, plan: Plan) -> None:
    kind, buffers = "decoded", list[pickle.PickleBuffer]()
    content: Any
    try:
        content = pickle.dumps(codec.decode_request(call, plan), protocol=5, buffer_callback=buffers.append)
    except RequestError as error:
        kind, content, buffers = "error", vars(error), []
    connection.send_bytes(pickle.dumps((kind, content, len(buffers))))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


if __name__ == "__main__":
    serve_socket(int(sys.argv[1]))
