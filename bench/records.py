"""What a run has measured, as it is kept in a file. Written by `run.py`, read by `report.py`.

A run may be cut off after any point: the file is written again after each one.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a generator of load saw of a server."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    bad_status: int
    bad_socket: int
    """Connections or answers that failed, or took longer than 60 s."""


class Load(Outcome, frozen=True, kw_only=True):
    """What wrk counted."""

    requests: int
    seconds: float
    cpu_s: float = 0.0
    """Of wrk itself."""


class Point(Outcome, frozen=True, kw_only=True):
    """One server under one load, once."""

    round: int
    workload: str
    target: str
    connections: int
    requests_per_s: float
    """Without those of another status than 2xx or 3xx."""
    cpu_s_per_1000: float
    """The server's CPU time for a thousand requests."""
    server_cores: float
    generator_cores: float
    other_cores: float
    """Used meanwhile by everything else on the machine; a point with much of it is not worth much."""
    rss_mib: float
    pss_mib: float
    processes: int


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """Bare torch without a server, once."""

    round: int
    workload: str
    processes: int
    threads: int
    """Of each process."""
    batch: int
    items_per_s: float
    other_cores: float
    """As in Point, over all batch sizes of this way."""


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Every input posted at the same time, each answer beside that of the model alone in its process."""

    workload: str
    target: str
    count: int
    max_difference: float
    """Absolute."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A point that could not be measured."""

    round: int
    workload: str
    target: str
    message: str


class Run(msgspec.Struct, kw_only=True):
    """One run: where, of what, how, and what came out."""

    started: str
    """UTC."""
    machine: dict[str, str]
    method: dict[str, str]
    versions: dict[str, str]
    """By target."""
    settings: dict[str, dict[str, dict[str, str]]] = {}
    """By workload and target: request format and configuration."""
    points: list[Point] = []
    limits: list[Limit] = []
    answers: list[Answers] = []
    failures: list[Failure] = []

    def save(self, path: Path) -> None:
        """Replace the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def read_run(path: Path) -> Run:
    """What `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Run)
