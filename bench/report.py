"""A run as Markdown: the goals, then a table for each workload. Pure.

A figure is the median of the rounds with min-max. A ratio is formed within each round, from points taken minutes apart,
and then summarised: the machine's drift over the hour stays out of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from records import Limit, Point, Run
from targets import OURS

ByRound = Mapping[int, float]
DISTURBED_CORES = 0.1
"""A point beside more work than this is counted as disturbed; a guess, 5 % of two cores."""


@dataclass(frozen=True)
class Goal:
    """One sentence that the run proves or not; `values` gives the figure of each round."""

    text: str
    values: Callable[[Run], ByRound]
    bound: float
    is_upper: bool = False
    """The figure must not be above the bound; else not below it."""

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.is_upper else value >= self.bound


def by_round(points: Iterable[Point], workload: str, target: str, connections: int, field: str) -> ByRound:
    """One figure of one server in every round that has it."""
    return {
        p.round: getattr(p, field)
        for p in points
        if (p.workload, p.target, p.connections) == (workload, target, connections)
    }


def ratio(above: ByRound, below: ByRound) -> ByRound:
    """Round by round, where both were measured."""
    return {n: above[n] / below[n] for n in above if below.get(n)}


def throughput(run: Run, workload: str, target: str, connections: int = 64) -> ByRound:
    """Answers a second in every round."""
    return by_round(run.points, workload, target, connections, "requests_per_s")


def best_rival(run: Run, workload: str, connections: int = 64) -> str:
    """The rival with the greatest median throughput; nothing when none was measured."""
    rivals = {p.target for p in run.points if p.workload == workload} - {OURS}
    medians = {
        r: statistics.median(rates.values()) for r in rivals if (rates := throughput(run, workload, r, connections))
    }
    return max(medians, key=medians.__getitem__, default="")


def limit_by_way(run: Run, workload: str) -> dict[tuple[int, int, int], ByRound]:
    """Items a second of bare torch, by (processes, threads, batch)."""
    ways: dict[tuple[int, int, int], dict[int, float]] = {}
    for limit in run.limits:
        if limit.workload == workload:
            ways.setdefault(way_of(limit), {})[limit.round] = limit.items_per_s
    return ways


def way_of(limit: Limit) -> tuple[int, int, int]:
    """What tells one way to run bare torch from another."""
    return limit.processes, limit.threads, limit.batch


def best_limit(run: Run, workload: str) -> ByRound:
    """Bare torch in the way that has the greatest median: one way for all rounds, so that noise is not picked."""
    return max(limit_by_way(run, workload).values(), key=lambda rates: statistics.median(rates.values()), default={})


def against_best_rival(run: Run, workload: str) -> ByRound:
    """Our throughput to that of the best rival."""
    return ratio(throughput(run, workload, OURS), throughput(run, workload, best_rival(run, workload)))


def difference(run: Run, workload: str) -> ByRound:
    """Greatest difference of our answers, measured once."""
    mine = [a.max_difference for a in run.answers if (a.workload, a.target) == (workload, OURS)]
    return dict(enumerate(mine))


GOALS = (
    Goal(
        "mlp: throughput to mosec's",
        lambda run: ratio(throughput(run, "mlp", OURS), throughput(run, "mlp", "mosec")),
        1.1,
    ),
    Goal("mlp: p50 at one connection, ms", lambda run: by_round(run.points, "mlp", OURS, 1, "p50_ms"), 0.4, True),
    Goal(
        "resnet18: throughput to bare torch's limit",
        lambda run: ratio(throughput(run, "resnet18", OURS), best_limit(run, "resnet18")),
        0.95,
    ),
    Goal("resnet18: throughput to the best rival's", lambda run: against_best_rival(run, "resnet18"), 1.0),
    Goal("encoder: throughput to the best rival's", lambda run: against_best_rival(run, "encoder"), 1.5),
    Goal("encoder: greatest difference to the unbatched answers", lambda run: difference(run, "encoder"), 1e-5, True),
)


def number(value: float) -> str:
    """Three significant digits, whole from a hundred on."""
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1e}"


def spread(values: Iterable[float]) -> str:
    """Median (min-max)."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    middle = number(statistics.median(ordered))
    return f"{middle} ({number(ordered[0])}-{number(ordered[-1])})" if len(ordered) > 1 else middle


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def goals_table(run: Run) -> list[str]:
    """Every goal that the run has figures for."""
    rows = []
    for goal in GOALS:
        values = list(goal.values(run).values())
        if values:
            met = sum(map(goal.is_met, values))
            verdict = "yes" if goal.is_met(statistics.median(values)) else "no"
            sign = "≤" if goal.is_upper else "≥"
            rows.append([goal.text, f"{sign} {goal.bound:g}", spread(values), verdict, f"{met} of {len(values)}"])
    return markdown_table(["goal", "bound", "measured", "met by the median", "rounds that meet it"], rows)


def servers_table(run: Run, workload: str, connections: int) -> list[str]:
    """Every server at one load, the fastest first."""
    mine = [p for p in run.points if (p.workload, p.connections) == (workload, connections)]
    ours = throughput(run, workload, OURS, connections)
    rows = []
    for target in dict.fromkeys(p.target for p in mine):
        points = [p for p in mine if p.target == target]
        rates = throughput(run, workload, target, connections)

        def figure(field: str, points: list[Point] = points) -> str:
            return spread(getattr(p, field) for p in points)

        cells = [
            target,
            figure("requests_per_s"),
            "" if target == OURS else spread(ratio(ours, rates).values()),
            *map(figure, ("p50_ms", "p95_ms", "p99_ms", "cpu_s_per_1000")),
            f"{median_of(points, 'server_cores'):.2f} + {median_of(points, 'generator_cores'):.2f}",
            f"{median_of(points, 'rss_mib'):.0f} / {median_of(points, 'pss_mib'):.0f}",
            f"{sum(p.bad_status for p in points)} + {sum(p.bad_socket for p in points)}",
        ]
        rows.append((statistics.median(rates.values()), cells))
    head = ["server", "requests/s", f"{OURS} to it", "p50 ms", "p95 ms", "p99 ms", "CPU s per 1,000"]
    head += ["cores: server + wrk", "RSS / PSS MiB", "errors: status + socket"]
    return [
        f"**{workload}, {connections} connection{'s' * (connections > 1)}**\n",
        *markdown_table(head, (cells for _, cells in sorted(rows, key=lambda row: -row[0]))),
    ]


def median_of(points: list[Point], field: str) -> float:
    """Of one figure."""
    return statistics.median(getattr(p, field) for p in points)


def limits_table(run: Run, workload: str) -> list[str]:
    """Bare torch in every way that was tried."""
    ways = limit_by_way(run, workload)
    rows = [
        [f"{processes} x {threads}", str(batch), spread(rates.values())]
        for (processes, threads, batch), rates in ways.items()
    ]
    head = ["processes x threads", "batch", "items/s"]
    return [f"**{workload}, bare torch, no server**\n", *markdown_table(head, rows)] if rows else []


def facts(run: Run) -> list[str]:
    """Where, when, of what, how."""
    lines = [f"- {name}: {value}" for name, value in {"started": run.started, **run.machine, **run.method}.items()]
    lines += [f"- {target}: {versions}" for target, versions in run.versions.items()]
    others = [measured.other_cores for measured in (*run.points, *run.limits)]
    disturbed = f"{sum(cores > DISTURBED_CORES for cores in others)} of {len(others)} measurements"
    note = f"others used more than {DISTURBED_CORES:g} core during {disturbed}, at most {max(others, default=0):.2f}"
    lines.append(f"- disturbance: {note}")
    return [*lines, ""]


def workload_section(run: Run, workload: str) -> list[str]:
    """All that was measured of one workload, and how each server was asked and configured."""
    connections = sorted({p.connections for p in run.points if p.workload == workload}, reverse=True)
    answers = {a.target: a for a in run.answers if a.workload == workload}
    rows = [
        [target, *described.values(), f"{answers[target].max_difference:.1e}" if target in answers else "-"]
        for target, described in run.settings.get(workload, {}).items()
    ]
    return [
        f"### {workload}\n",
        *(line for c in connections for line in servers_table(run, workload, c)),
        *limits_table(run, workload),
        *markdown_table(["server", "requests as", "configured", "greatest difference of an answer"], rows),
    ]


def render(run: Run) -> str:
    """The whole section of the page."""
    failures = [
        f"- round {f.round + 1}, {f.workload}, {f.target}: {' '.join(f.message.split())[:400]}" for f in run.failures
    ]
    sections = [line for workload in run.settings for line in workload_section(run, workload)]
    return "\n".join(
        [
            *facts(run),
            "### Goals\n",
            *goals_table(run),
            *sections,
            *(["### Not measured\n", *failures, ""] if failures else []),
        ]
    )


def replace_section(page: str, name: str, text: str) -> str:
    """The page with `text` between its markers `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have {begin} and {end} once each")
    head, rest = page.split(begin)
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"
