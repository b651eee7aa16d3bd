"""The numbers a serving process shows at `/metrics`: recorded here for a microsecond, added up over all processes at the scrape.

`telemetry.py` counts requests, `batcher.py` batches, `startup.py`'s report tells what is loaded. What changes with every request
is a plain number, changed on the event loop alone, because a counter of prometheus_client takes a lock and a name lookup that
cost as much as decoding a small request. `snapshot` is this process, `render` what all of them amount to; only there does
prometheus_client come in. The operator's autoscaler reads `torchmodel_in_flight_requests` and `torchmodel_queued_rows`:
renaming one is a change of contract. What there is to see stands in `families.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal

import msgspec
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from torchmodel_runtime.config import ModelReport
from torchmodel_runtime.families import BY_NAME, FAMILIES, Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""generate_latest writes the text format 0.0.4 (Prometheus, exposition formats)."""

Key = tuple[str, tuple[str, ...]]
"""Family and label values, in the order of `Family.all_labels`."""


class Histogram:
    """Counts by bucket, and their sum. Not thread-safe."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, family: str) -> None:
        self._bounds = BY_NAME[family].buckets
        self.counts = [0] * (len(self._bounds) + 1)
        """Of each bucket alone; the last is what is over the last bound."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it, as Prometheus' `le` says."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class DialectTally:
    """What is counted by dialect."""

    __slots__ = ("decode_s", "encode_s", "request_bytes", "request_s", "requests", "response_bytes")

    def __init__(self) -> None:
        self.requests: defaultdict[int, int] = defaultdict(int)
        """By status."""
        self.request_s = Histogram("torchmodel_request_seconds")
        self.decode_s = Histogram("torchmodel_decode_seconds")
        self.encode_s = Histogram("torchmodel_encode_seconds")
        self.request_bytes = 0
        self.response_bytes = 0


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """One process at one moment, as it crosses to the process that was scraped."""

    values: list[tuple[str, tuple[str, ...], float]]
    histograms: list[tuple[str, tuple[str, ...], list[int], float]]


class Metrics:
    """Counters, gauges and histograms of one process. Everything but `__init__` is called on the event loop."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.dialects: defaultdict[str, DialectTally] = defaultdict(DialectTally)
        self.ways: defaultdict[tuple[str, str], int] = defaultdict(int)
        """HTTP inference requests by head and way, as torchmodel_http_requests_total has it."""
        self.prepare_s = Histogram("torchmodel_prepare_seconds")
        self.queue_wait_s = Histogram("torchmodel_queue_wait_seconds")
        self.batch_rows = Histogram("torchmodel_batch_rows")
        self.compute_s = Histogram("torchmodel_compute_seconds")
        self._counts: dict[Key, float] = {}
        self._told: list[tuple[str, tuple[str, ...], float]] = []
        self._watched: dict[str, Callable[[], float]] = {}
        self._process = ProcessCollector(registry=None)
        for cause in ("expired", "disconnected"):
            self._count("torchmodel_abandoned_total", cause, by=0)
        for cause in ("request", "batch"):
            self._count("torchmodel_engine_errors_total", cause, by=0)
        self._count("torchmodel_access_log_dropped_total", by=0)
        for gauge in ("ready", "in_flight_requests", "in_flight_bytes", "in_flight_bytes_limit", "queued_rows"):
            self.watch(f"torchmodel_{gauge}", float)

    def watch(self, gauge: str, read: Callable[[], float]) -> None:
        """Ask `read` whenever metrics are read; gauge is a family without labels. KeyError for one that does not exist."""
        if BY_NAME[gauge].kind != "gauge" or BY_NAME[gauge].labels:
            raise KeyError(f"{gauge} is no gauge without labels")
        self._watched[gauge] = read

    def watch_queue(self, queued_rows: Callable[[], float]) -> None:
        """Ask the batcher for its waiting rows whenever metrics are read."""
        self.watch("torchmodel_queued_rows", queued_rows)

    def count_rejected(self, reason: str) -> None:
        """One request got an error; reason is the error's stable code."""
        self._count("torchmodel_rejected_total", reason)

    def count_abandoned(self, cause: Literal["expired", "disconnected"]) -> None:
        """One request got no answer in time, or its client left."""
        self._count("torchmodel_abandoned_total", cause)

    def count_engine_error(self, cause: Literal["request", "batch"]) -> None:
        """The model failed on one request, or the engine on a whole batch."""
        self._count("torchmodel_engine_errors_total", cause)

    def count_dropped_line(self) -> None:
        """The access log left a line out."""
        self._count("torchmodel_access_log_dropped_total")

    def tell_loaded(self, report: ModelReport) -> None:
        """The model is loaded, warm and proven; what was told of another is forgotten."""
        cold = report.cold_start
        self._told = [
            ("torchmodel_model_info", (report.sha256, report.format, report.device, self._model), 1),
            ("torchmodel_cold_start_seconds", ("fetch", self._model), cold.fetch_seconds),
            ("torchmodel_cold_start_seconds", ("import", self._model), cold.import_seconds),
            ("torchmodel_cold_start_seconds", ("load", self._model), cold.load_seconds),
            ("torchmodel_cold_start_seconds", ("warm_up", self._model), cold.warm_up_seconds),
            ("torchmodel_batching_enabled", (self._model,), float(report.batching.enabled)),
            ("torchmodel_batch_rows_limit_at_start", (self._model,), report.batching.max_size),
        ]
        for proof in report.batching.proofs:
            labels = (str(proof.rows), str(proof.padded).lower(), self._model)
            self._told.append(("torchmodel_batch_proof_difference", labels, proof.max_difference))

    def snapshot(self) -> bytes:
        """This process's numbers, for `render` here or in a sibling."""
        return msgspec.msgpack.encode(Snapshot(list(self._values()), list(self._histograms())))

    def _count(self, family: str, *labels: str, by: int = 1) -> None:
        key = (family, (*labels, self._model))
        self._counts[key] = self._counts.get(key, 0) + by

    def _values(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        model = self._model
        yield "torchmodel_processes", (model,), 1
        yield from self._told
        for gauge, read in self._watched.items():
            yield gauge, (model,), float(read())
        for (family, labels), value in self._counts.items():
            yield family, labels, value
        for (head, way), count in self.ways.items():
            yield "torchmodel_http_requests_total", (head, way, model), count
        for dialect, tally in self.dialects.items():
            for status, count in tally.requests.items():
                yield "torchmodel_requests_total", (dialect, str(status), model), count
            yield "torchmodel_request_bytes_total", (dialect, model), tally.request_bytes
            yield "torchmodel_response_bytes_total", (dialect, model), tally.response_bytes
        for metric in self._process.collect():
            for sample in metric.samples:
                if sample.name in BY_NAME:
                    yield sample.name, (), sample.value

    def _histograms(self) -> Iterator[tuple[str, tuple[str, ...], list[int], float]]:
        model = self._model
        for dialect, tally in self.dialects.items():
            yield "torchmodel_request_seconds", (dialect, model), tally.request_s.counts, tally.request_s.total
            yield "torchmodel_decode_seconds", (dialect, model), tally.decode_s.counts, tally.decode_s.total
            yield "torchmodel_encode_seconds", (dialect, model), tally.encode_s.counts, tally.encode_s.total
        for family, histogram in (
            ("torchmodel_prepare_seconds", self.prepare_s),
            ("torchmodel_queue_wait_seconds", self.queue_wait_s),
            ("torchmodel_batch_rows", self.batch_rows),
            ("torchmodel_compute_seconds", self.compute_s),
        ):
            yield family, (model,), histogram.counts, histogram.total


_decoder = msgspec.msgpack.Decoder(Snapshot)

_COMBINE: dict[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "min": min, "max": max}


def render(snapshots: Sequence[bytes]) -> bytes:
    """What the processes amount to, in the Prometheus text format. msgspec.DecodeError for what is no snapshot."""
    return generate_latest(_Merged(*_merge(snapshots)))


def add_up(snapshots: Sequence[bytes]) -> bytes:
    """One snapshot of what processes that have ended leave behind: counters and histograms; a gauge ends with its process."""
    values, histograms = _merge(snapshots)
    kept = [(name, labels, value) for (name, labels), value in values.items() if BY_NAME[name].kind == "counter"]
    summed = [(name, labels, counts, total) for (name, labels), (counts, total) in histograms.items()]
    return msgspec.msgpack.encode(Snapshot(kept, summed))


def _merge(snapshots: Sequence[bytes]) -> tuple[dict[Key, float], dict[Key, tuple[list[int], float]]]:
    values: dict[Key, float] = {}
    histograms: dict[Key, tuple[list[int], float]] = {}
    for snapshot in map(_decoder.decode, snapshots):
        for name, labels, value in snapshot.values:
            key = (name, labels)
            values[key] = _COMBINE[BY_NAME[name].merge](values[key], value) if key in values else value
        for name, labels, counts, total in snapshot.histograms:
            seen_counts, seen_total = histograms.get((name, labels), ([0] * len(counts), 0.0))
            added = [a + b for a, b in zip(seen_counts, counts, strict=True)]
            histograms[name, labels] = (added, seen_total + total)
    return values, histograms


class _Merged(Collector):
    """Merged numbers in the form that prometheus_client writes out."""

    def __init__(self, values: dict[Key, float], histograms: dict[Key, tuple[list[int], float]]) -> None:
        self._values = values
        self._histograms = histograms

    def collect(self) -> Iterable[Metric]:
        """Every family in the table's order, those without a sample yet included."""
        made = {family.name: _make(family) for family in FAMILIES}
        for (name, labels), value in self._values.items():
            metric = made[name]
            if not isinstance(metric, HistogramMetricFamily):
                metric.add_metric(labels, value)
        for (name, labels), (counts, total) in self._histograms.items():
            metric = made[name]
            if isinstance(metric, HistogramMetricFamily):
                bounds = [*map(floatToGoString, BY_NAME[name].buckets), "+Inf"]
                metric.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return made.values()


def _make(family: Family) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    if family.kind == "counter":
        return CounterMetricFamily(family.name, family.help, labels=family.all_labels)
    if family.kind == "gauge":
        return GaugeMetricFamily(family.name, family.help, labels=family.all_labels)
    return HistogramMetricFamily(family.name, family.help, labels=family.all_labels)
