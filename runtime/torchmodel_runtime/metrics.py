"""The numbers a serving process shows at `/metrics`, on a registry of its own.

`server.py` counts requests and `batcher.py` batches; `startup.py` tells what is loaded. The operator's autoscaler reads
`torchmodel_in_flight_requests` and `torchmodel_queued_rows`: renaming one is a change of contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from torchmodel_runtime.config import ModelReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""generate_latest writes the text format 0.0.4 (Prometheus, exposition formats)."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Half a millisecond is a small MLP alone, 30 s the default request timeout; the steps between are Prometheus' usual ones."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """Counters, gauges and histograms of one process."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._info = Gauge(
            "torchmodel_model_info", "What is loaded.", ["model", "sha256", "format", "device"], registry=registry
        )
        self._requests = Counter(
            "torchmodel_requests", "Inference requests answered.", ["dialect", "code"], registry=registry
        )
        self._request_s = Histogram(
            "torchmodel_request_seconds",
            "From a request's first byte read to its answer.",
            ["dialect"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "torchmodel_rejected", "Requests refused or failed, by cause.", ["reason"], registry=registry
        )
        self.in_flight = Gauge(
            "torchmodel_in_flight_requests", "Inference requests being worked on.", registry=registry
        )
        self._queued_rows = Gauge("torchmodel_queued_rows", "Rows waiting for the model.", registry=registry)
        self.queue_wait_s = Histogram(
            "torchmodel_queue_wait_seconds", "From queue to batch.", buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram("torchmodel_batch_rows", "Rows in a batch.", buckets=ROWS, registry=registry)
        self.compute_s = Histogram(
            "torchmodel_compute_seconds", "The model's own time for a batch.", buckets=SECONDS, registry=registry
        )
        self.ready = Gauge("torchmodel_ready", "1 while the model takes requests.", registry=registry)
        self._cold_start_s = Gauge(
            "torchmodel_cold_start_seconds", "Where the time of the start went.", ["phase"], registry=registry
        )

    def count_request(self, dialect: str, status: int, seconds: float) -> None:
        """One inference request was answered, well or not."""
        self._requests.labels(dialect, str(status)).inc()
        self._request_s.labels(dialect).observe(seconds)

    def count_rejected(self, reason: str) -> None:
        """One request got an error; reason is the error's stable code."""
        self._rejected.labels(reason).inc()

    def watch_queue(self, queued_rows: Callable[[], float]) -> None:
        """Ask the batcher for its waiting rows whenever metrics are read."""
        self._queued_rows.set_function(queued_rows)

    def tell_loaded(self, report: ModelReport) -> None:
        """The model is loaded and warm."""
        self._info.labels(self._model, report.sha256[:12], report.format, report.device).set(1)
        cold = report.cold_start
        for phase, seconds in (
            ("fetch", cold.fetch_seconds),
            ("import", cold.import_seconds),
            ("load", cold.load_seconds),
            ("warm_up", cold.warm_up_seconds),
        ):
            self._cold_start_s.labels(phase).set(seconds)

    def snapshot(self) -> bytes:
        """What this process counted, for `render` in any process of the port."""
        return generate_latest(self.registry)

    def render(self, snapshots: Sequence[bytes]) -> bytes:
        """All processes' numbers in the Prometheus text format."""
        return snapshots[0]
