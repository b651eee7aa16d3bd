"""A stream of bad clients against a running server, from a process of its own: `neighbours.py` starts it beside good ones.

Three kinds at once: the attacks of tests/hostile in a seeded order at a steady rate, each on a new connection; large bodies that
come to nothing; clients that hold connections and send a byte a second. Prints a line of JSON when it ends, on SIGTERM: how often
each status came, and who got none in time.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import urllib.parse
from collections.abc import Awaitable, Callable

from malformed import make_malformed, serialize

LIMIT_S = 30
"""A request without an answer by then hangs."""
LARGE_BYTES = 8 << 20
DRIP_S = 1.0
NICENESS = 19
"""Bad clients are elsewhere: what they cost is measured, not what it costs to play them on the same cores."""

Send = Callable[[bytes], Awaitable[None]]


class Stream:
    """What is sent, and what came back."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self._host, self._port = host, port
        self._attacks = [serialize(attack) for attack in make_malformed(model)]
        random.Random(0).shuffle(self._attacks)  # noqa: S311 - not a secret
        self._large = [serialize_large(model, kind) for kind in ("values", "blanks", "tensor")]
        self.statuses: collections.Counter[str] = collections.Counter()
        self.slow = 0
        self.left_out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def leave_out(self) -> None:
        """Each attack is sent once, and those that this model takes, or fails on, are left out: they are no bad requests."""
        kept = []
        for sent in self._attacks:
            before = self.statuses.copy()
            await self._ask(sent)
            if any(status.startswith("4") for status in self.statuses - before):
                kept.append(sent)
        self.left_out = len(self._attacks) - len(kept)
        self._attacks = kept
        self.statuses.clear()

    async def send_attacks(self, rate: float) -> None:
        """One after the other, so many a second, whether the last was answered or not."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for sent in itertools.cycle(self._attacks):
            self._start(self._ask(sent))
            due_s = max(due_s, loop.time() - 1 / rate) + 1 / rate  # after a stop there is nothing to catch up with
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    async def send_large(self, rate: float) -> None:
        """As `send_attacks`."""
        for sent in itertools.cycle(self._large):
            self._start(self._ask(sent))
            await asyncio.sleep(1 / rate)

    async def drip(self) -> None:
        """A client that sends its request a byte at a time, and comes again when it is cut."""
        sent = self._attacks[0]
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                self.slow += 1
                ending = asyncio.create_task(reader.read())
                for byte in sent:
                    writer.write(bytes([byte]))
                    await asyncio.wait((ending,), timeout=DRIP_S)
                    if ending.done():
                        break
                ending.cancel()
                writer.close()
            await asyncio.sleep(DRIP_S)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, sent: bytes) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                with contextlib.suppress(OSError):  # it may answer and close before it has read all
                    writer.write(sent)
                    await writer.drain()
                first = await reader.readline()
                writer.close()
            self.statuses[first[9:12].decode() or "closed"] += 1
        except TimeoutError:
            self.statuses["none in time"] += 1
        except OSError as error:
            self.statuses[type(error).__name__] += 1


def serialize_large(model: str, kind: str) -> bytes:
    """A request of LARGE_BYTES that cannot be answered: too many values, a document after blanks, a tensor of a wrong size."""
    body = {"values": b'{"inputs": [' + b"0," * (LARGE_BYTES // 2), "blanks": b" " * LARGE_BYTES + b"{"}.get(kind)
    path = f"/v2/models/{model}/infer"
    fields = "Content-Type: application/json"
    if body is None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": LARGE_BYTES}}
        head = json.dumps({"inputs": [tensor]}).encode()
        body = head + bytes(LARGE_BYTES)
        fields = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}"
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\n{fields}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def main() -> int:
    """Until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--large-rate", type=float, default=0.5)
    parser.add_argument("--slow", type=int, default=50)
    options = parser.parse_args()
    os.nice(NICENESS)
    parts = urllib.parse.urlparse(options.url)
    stream = Stream(parts.hostname or "", parts.port or 80, "bench")
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await stream.leave_out()
    work = [asyncio.create_task(stream.drip()) for _ in range(options.slow)]
    if options.rate:
        work.append(asyncio.create_task(stream.send_attacks(options.rate)))
    if options.large_rate:
        work.append(asyncio.create_task(stream.send_large(options.large_rate)))
    print("started", flush=True)
    await ended.wait()
    for task in work:
        task.cancel()
    print(json.dumps({"statuses": stream.statuses, "slow": stream.slow, "left_out": stream.left_out}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
