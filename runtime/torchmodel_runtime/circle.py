"""What all processes of one port say together: each keeps its latest numbers in a file of the private folder they share.

Theory. The kernel gives a scrape to any of the processes, and sums must not fall when another one dies. So a process writes its
numbers down before it tells them to anybody, and every SAY_S besides: what was seen once stays. The one that is scraped asks the
others, over Unix sockets, to write theirs now, and adds up what lies there. When a sibling has ended, the first process adds its
last numbers to those of all that ended before (`bury`). Each life has a name of its own, and the sum names the lives in it, so
whoever reads between the two steps counts nothing twice.

`__main__` makes a `Circle` in every process. Knows no metrics: what is said is bytes, and `add_up` is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from torchmodel_runtime.processes import Membership

ASK_S = 0.5
"""Who does not write its numbers in this time is counted with those it wrote last."""

SAY_S = 1.0
"""So much of what a process did can be lost when it is killed."""

NAMED_LIVES = 64
"""The last that ended are named with their sum; of older ones nobody can still be reading a file."""

_WORDS, _SUM = ".words", "ended.sum"

AddUp = Callable[[Sequence[bytes]], bytes]


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What the processes that are no more amount to."""

    lives: list[str]
    words: bytes


class Circle:
    """One process among those of its port."""

    def __init__(self, membership: Membership, say: Callable[[], bytes]) -> None:
        self._folder = membership.folder
        self._socket = membership.folder / f"{membership.index}.sock"
        self._life = membership.life_of(os.getpid())
        self._say = say
        self._server: asyncio.Server | None = None
        self._saying: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """There are others: write down this process's numbers from now on, at once when one of them asks."""
        self._socket.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._answer, self._socket)
        except FileNotFoundError:
            return  # the first process is gone, and its folder with it; this one is about to be told
        self._saying = asyncio.create_task(self._keep_saying())

    async def leave(self) -> None:
        """For the last time."""
        if self._server is not None:
            self._server.close()
        if self._saying is not None:
            self._saying.cancel()
            self._write()

    async def ask(self) -> list[bytes]:
        """What every process says now, or said last, and what those said that have ended."""
        if self._server is None:
            return [self._say()]
        self._write()
        await asyncio.gather(*(_ask(path) for path in self._folder.glob("*.sock") if path != self._socket))
        said = {path.stem: _read(path) for path in self._folder.glob(f"*{_WORDS}")}
        ended = _read_ended(self._folder)  # after the words, so that whoever is buried meanwhile is seen once at least
        living = [said[life] for life in sorted(said) if life not in ended.lives]
        return [words for words in (*living, ended.words) if words]

    async def _keep_saying(self) -> None:
        while True:
            self._write()
            await asyncio.sleep(SAY_S)

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._write()
        writer.close()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the first process, whose folder it is, may be gone
            _replace(self._folder / f"{self._life}{_WORDS}", self._say())


def bury(folder: Path, add_up: AddUp, life: str) -> None:
    """A sibling has ended: what it said last goes to what others said that ended before. In the first process only."""
    words = _read(folder / f"{life}{_WORDS}")
    if not words:
        return
    ended = _read_ended(folder)
    summed = add_up([each for each in (ended.words, words) if each])
    lives = [*ended.lives, life][-NAMED_LIVES:]
    _replace(folder / _SUM, msgspec.msgpack.encode(Ended(lives, summed)))
    (folder / f"{life}{_WORDS}").unlink()


def _read_ended(folder: Path) -> Ended:
    words = _read(folder / _SUM)
    return msgspec.msgpack.decode(words, type=Ended) if words else Ended([], b"")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _replace(path: Path, content: bytes) -> None:
    """So that a reader gets the old or the new."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(content)
    draft.replace(path)


async def _ask(path: Path) -> None:
    """Wait until that process has written its numbers down, if it does so in time."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                await reader.read()
            finally:
                writer.close()
