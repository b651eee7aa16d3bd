"""Which batching policy answers variable-length requests fastest: a discrete-event simulation, seconds long, no torch.

`python bench/batching_simulation.py` prints the table of docs/explanation/batching.md. Ours is the runtime's own queue and cost
model (`torchmodel_runtime.batching`, `.costmodel`); the rivals are a few lines each. Clients ask again as soon as they have
their answer. A batch takes what the encoder of docs/performance.md takes on one thread: 2.3 ms, and 85 µs for each position,
padding included (fitted to its rates alone and in batches of equal length), with five percent of noise.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from torchmodel_runtime.batching import BatchWindow, Entry
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.costmodel import CostModel

CALL_S, POSITION_S, NOISE = 2.3e-3, 85e-6, 0.05
MAX_ROWS = 32


class Row(Entry):
    """One request of one row; a byte stands for a position."""

    def __init__(self, length: int, now_s: float) -> None:
        super().__init__(1, length, "k", now_s, now_s + 1e9)


def predict_s(rows: int, longest: int) -> float:
    """What a batch takes, as the simulation's machine has it."""
    return CALL_S + POSITION_S * rows * longest


class Ours:
    """The runtime's."""

    def __init__(self, sizes: tuple[int, ...] = ()) -> None:
        """sizes: the only numbers of rows that a batch may have; empty: all will do."""
        self._cost = CostModel(MAX_ROWS)
        rules = BatchRules(MAX_ROWS, sizes=sizes, padded_inputs=(0,))
        self._window: BatchWindow[Row] = BatchWindow(rules, 0.0, self._cost)

    def add(self, row: Row) -> None:
        """One more waits."""
        self._window.add(row)

    def take(self, now_s: float, free: int) -> list[Row]:
        """The next batch; empty when nothing waits."""
        return self._window.take(now_s, MAX_ROWS, workers=free).batch

    def learn(self, batch: list[Row], seconds: float) -> None:
        """It took so long."""
        useful = sum(row.row_bytes for row in batch)
        padded = len(batch) * max(row.row_bytes for row in batch)
        self._cost.observe(len(batch), padded, useful, seconds, loaded=len(self._window) > 0)


@dataclass
class Rival:
    """A queue in order of arrival and a function that chooses of it."""

    choose: Callable[[list[Row], int], list[Row]]
    waiting: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """One more waits."""
        self.waiting.append(row)

    def take(self, _: float, free: int) -> list[Row]:
        """The next batch; workers that are free together share, as in ours."""
        if not self.waiting:
            return []
        batch = self.choose(self.waiting, -(-len(self.waiting) // free))
        chosen = set(map(id, batch))
        self.waiting = [row for row in self.waiting if id(row) not in chosen]
        return batch

    def learn(self, batch: list[Row], seconds: float) -> None:
        """They know the machine, or need not."""


def in_order(max_rows: int) -> Callable[[list[Row], int], list[Row]]:
    """As they came, padded to the longest."""
    return lambda waiting, share: waiting[: min(max_rows, share)]


def windows(rate: Callable[[int, int, int], float], hold_oldest: bool) -> Callable[[list[Row], int], list[Row]]:
    """Of all windows of similar length the one of the lowest rate (rows, positions, longest)."""

    def choose(waiting: list[Row], share: int) -> list[Row]:
        rows = sorted(waiting, key=lambda row: row.row_bytes)
        oldest, most = rows.index(waiting[0]), min(MAX_ROWS, share)
        best, best_rate = (oldest, oldest), float("inf")
        for last in range(len(rows)):
            positions = 0
            for first in range(last, max(-1, last - most), -1):
                positions += rows[first].row_bytes
                if hold_oldest and not first <= oldest <= last:
                    continue
                value = rate(last - first + 1, positions, rows[last].row_bytes)
                if value < best_rate:
                    best, best_rate = (first, last), value
        return rows[best[0] : best[1] + 1]

    return choose


POLICIES: dict[str, Callable[[], Ours | Rival]] = {
    "one at a time": lambda: Rival(in_order(1)),
    "order of arrival, up to 8": lambda: Rival(in_order(8)),
    "order of arrival, up to 32": lambda: Rival(in_order(32)),
    "least time a row": lambda: Rival(windows(lambda rows, _, longest: predict_s(rows, longest) / rows, False)),
    "least time a row, oldest in it": lambda: Rival(
        windows(lambda rows, _, longest: predict_s(rows, longest) / rows, True)
    ),
    "least time a position, oldest in it": lambda: Rival(
        windows(lambda rows, positions, longest: predict_s(rows, longest) / positions, True)
    ),
    "ours where no time was left to prove all sizes": lambda: Ours((1, 2, 3, 4, 6, 8, 12, 16, 24, 32)),
    "ours": Ours,
}


@dataclass(frozen=True)
class Outcome:
    """Of one simulation."""

    per_second: float
    p50_s: float
    p99_s: float
    longest_s: float
    rows: float
    """In a batch, on average."""


def simulate(policy: Ours | Rival, connections: int, workers: int, requests: int, seed: int = 1) -> Outcome:
    """A closed loop of so many clients, until so many requests are answered."""
    generator = random.Random(seed)  # noqa: S311 - no secrets here

    def ask(now_s: float) -> None:
        policy.add(Row(8 + round(120 * generator.betavariate(1.5, 3)), now_s))

    running: list[tuple[float, int, float, list[Row]]] = []
    free, batches, now_s = workers, 0, 0.0
    waits: list[float] = []
    for _ in range(connections):
        ask(0.0)
    while len(waits) < requests:
        while free and (batch := policy.take(now_s, free)):
            longest = max(row.row_bytes for row in batch)
            seconds = predict_s(len(batch), longest) * generator.lognormvariate(0, NOISE)
            batches += 1
            free -= 1
            heapq.heappush(running, (now_s + seconds, batches, seconds, batch))
        now_s, _, seconds, batch = heapq.heappop(running)
        free += 1
        policy.learn(batch, seconds)
        waits += [now_s - row.arrived_s for row in batch]
        for _ in batch:
            ask(now_s)
    waits.sort()
    return Outcome(
        len(waits) / now_s, waits[len(waits) // 2], waits[int(0.99 * len(waits))], waits[-1], len(waits) / batches
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare batching policies for variable lengths.")
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--requests", type=int, default=6000)
    arguments = parser.parse_args()
    for connections in arguments.connections:
        print(f"\n{connections} connections, {arguments.workers} workers of one thread\n")
        print("| policy | requests/s | p50 ms | p99 ms | longest ms | rows a batch |\n|---|--:|--:|--:|--:|--:|")
        for name, make in POLICIES.items():
            out = simulate(make(), connections, arguments.workers, arguments.requests)
            print(
                f"| {name} | {out.per_second:.0f} | {out.p50_s * 1e3:.0f} | {out.p99_s * 1e3:.0f} "
                f"| {out.longest_s * 1e3:.0f} | {out.rows:.1f} |"
            )


if __name__ == "__main__":
    main()
