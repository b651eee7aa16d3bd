"""Every metric that `/metrics` shows: name, kind, labels, buckets, how processes add up, and what it means.

`metrics.py` records and renders by this table, and docs/reference/metrics.md is written from it. Every `torchmodel_` family has
the label `model` besides those named here: one value a process, so it costs no series, and a dashboard over many models needs
no join. The digest is a label of `torchmodel_model_info` alone, since a rollout would break every other series in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "min", "max"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Half a millisecond is a small MLP alone, 30 s the default request timeout; the steps between are Prometheus' usual ones."""

SHORT_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
"""For steps beside the model: ten microseconds for a row of JSON, half a second for a long recording."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Powers of two up to the greatest serving.batching.maxSize."""


@dataclass(frozen=True)
class Family:
    """One metric of the exposition."""

    name: str
    """As in the exposition; a counter's ends in _total."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Besides `model`."""
    merge: Merge = "sum"
    """What the processes on one port amount to. Counters and histograms are always summed."""
    buckets: tuple[float, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """In the order in which samples carry their values."""
        return (*self.labels, "model") if self.name.startswith("torchmodel_") else self.labels


FAMILIES = (
    Family(
        "torchmodel_model_info",
        "gauge",
        "1 for what is loaded; its digest, format and device.",
        ("sha256", "format", "device"),
        "max",
    ),
    Family("torchmodel_ready", "gauge", "1 while the model takes requests, in every process.", merge="min"),
    Family("torchmodel_processes", "gauge", "Processes that these numbers are of."),
    Family("torchmodel_cold_start_seconds", "gauge", "Where the time of the start went.", ("phase",), "max"),
    Family("torchmodel_connections", "gauge", "Open HTTP connections."),
    Family("torchmodel_in_flight_requests", "gauge", "Inference requests being worked on, waiting ones included."),
    Family(
        "torchmodel_in_flight_bytes",
        "gauge",
        "Bytes that requests hold: bodies being read, what waits to be decoded, decoded media, tensors. Small requests that come "
        "whole count in torchmodel_queued_rows alone.",
    ),
    Family("torchmodel_in_flight_bytes_limit", "gauge", "Most of them (serving.limits.maxBytesInFlight)."),
    Family("torchmodel_queued_rows", "gauge", "Rows waiting for the model."),
    Family("torchmodel_requests_total", "counter", "Inference requests answered.", ("dialect", "code")),
    Family(
        "torchmodel_http_requests_total",
        "counter",
        "Inference requests over HTTP by what reading and answering them took: a head that is known, or parsed; the short way of "
        "small requests that came whole (passage, or task where steps take long), or the framework for all others.",
        ("head", "way"),
    ),
    Family(
        "torchmodel_request_seconds",
        "histogram",
        "From a request's header read to its answer.",
        ("dialect",),
        buckets=SECONDS,
    ),
    Family("torchmodel_request_bytes_total", "counter", "Request bodies, as they came.", ("dialect",)),
    Family("torchmodel_response_bytes_total", "counter", "Answers' bodies.", ("dialect",)),
    Family("torchmodel_rejected_total", "counter", "Requests refused or failed, by the error's code.", ("reason",)),
    Family(
        "torchmodel_abandoned_total",
        "counter",
        "Requests nobody waited for any more: expired past their deadline, disconnected by their client.",
        ("cause",),
    ),
    Family(
        "torchmodel_decode_seconds",
        "histogram",
        "Body to checked tensors, decompression included.",
        ("dialect",),
        buckets=SHORT_SECONDS,
    ),
    Family(
        "torchmodel_prepare_seconds",
        "histogram",
        "Tensors or medium to what the module takes: images decoded, text tokenized.",
        buckets=SHORT_SECONDS,
    ),
    Family("torchmodel_encode_seconds", "histogram", "Outputs to the answer.", ("dialect",), buckets=SHORT_SECONDS),
    Family("torchmodel_queue_wait_seconds", "histogram", "From queue to batch.", buckets=SECONDS),
    Family("torchmodel_batch_rows", "histogram", "Rows in a batch.", buckets=ROWS),
    Family("torchmodel_compute_seconds", "histogram", "The model's own time for a batch.", buckets=SECONDS),
    Family(
        "torchmodel_batch_rows_limit",
        "gauge",
        "Most rows in a batch now; falls when memory runs out, and does not rise before the next start.",
        merge="min",
    ),
    Family(
        "torchmodel_batch_bytes_limit",
        "gauge",
        "Most bytes of inputs in a batch now, +Inf where there is no bound; falls when memory runs out on rows larger than "
        "those of warm-up, and does not rise before the next start.",
        merge="min",
    ),
    Family(
        "torchmodel_batch_rows_limit_at_start",
        "gauge",
        "Most rows in a batch as warm-up left it.",
        merge="max",
    ),
    Family(
        "torchmodel_batching_enabled",
        "gauge",
        "1 when warm-up proved that requests may share a batch.",
        merge="min",
    ),
    Family(
        "torchmodel_batch_proof_difference",
        "gauge",
        "Greatest difference of warm-up between a row alone and the row in a batch of so many.",
        ("rows", "padded"),
        "max",
    ),
    Family(
        "torchmodel_engine_errors_total",
        "counter",
        "The model failed on one request of a batch (request), or the engine on all of a batch (batch).",
        ("cause",),
    ),
    Family("torchmodel_access_log_dropped_total", "counter", "Access log lines over the limit of lines a second."),
    Family("process_cpu_seconds_total", "counter", "User and system CPU time."),
    Family("process_resident_memory_bytes", "gauge", "Resident memory; pages that processes share count in each."),
    Family("process_virtual_memory_bytes", "gauge", "Virtual memory."),
    Family("process_open_fds", "gauge", "Open file descriptors."),
    Family("process_max_fds", "gauge", "File descriptors allowed."),
    Family("process_start_time_seconds", "gauge", "When the first process started, in Unix time.", merge="min"),
)

BY_NAME = {family.name: family for family in FAMILIES}
