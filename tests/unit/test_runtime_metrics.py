"""What is counted, how processes add up, and the page that says what there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from torchmodel_runtime.config import BatchingReport, BatchProof, ColdStart, ModelReport
from torchmodel_runtime.families import FAMILIES
from torchmodel_runtime.metrics import Histogram, Metrics, Snapshot, render

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

REPORT = ModelReport(
    sha256="ab" * 32,
    uri="file:///m",
    size_bytes=1,
    format="state-dict",
    load_safety="weights-only",
    device="cpu",
    cold_start=ColdStart(fetch_seconds=1, import_seconds=2, load_seconds=3, warm_up_seconds=4),
    batching=BatchingReport(
        enabled=True,
        max_size=32,
        reason="proven",
        proofs=[
            BatchProof(rows=4, max_difference=1e-7, tolerance=1e-5),
            BatchProof(rows=4, padded=True, max_difference=2e-7, tolerance=1e-5),
        ],
    ),
)


def read(*processes: Metrics) -> Samples:
    """What a scraper makes of the processes' numbers together."""
    text = render([process.snapshot() for process in processes]).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample; KeyError when there is none."""
    return samples[name, tuple(sorted({"model": "m", **labels}.items()))]


def used(dialect: str = "v2") -> Metrics:
    """A process that has answered one request."""
    metrics = Metrics("m")
    tally = metrics.dialects[dialect]
    tally.requests[200] += 1
    tally.request_s.observe(0.003)
    tally.decode_s.observe(0.00002)
    tally.encode_s.observe(0.00002)
    tally.request_bytes += 100
    tally.response_bytes += 50
    metrics.ways["known", "passage"] += 1
    metrics.prepare_s.observe(0.00002)
    metrics.queue_wait_s.observe(0.0001)
    metrics.batch_rows.observe(3)
    metrics.compute_s.observe(0.002)
    metrics.count_rejected("QUEUE_FULL")
    for gauge in ("torchmodel_connections", "torchmodel_batch_rows_limit", "torchmodel_batch_bytes_limit"):
        metrics.watch(gauge, lambda: 1)
    metrics.tell_loaded(REPORT)
    return metrics


def test_the_autoscaler_finds_its_two_numbers_from_the_first_moment() -> None:
    samples = read(Metrics("m"))
    assert value(samples, "torchmodel_in_flight_requests") == 0
    assert value(samples, "torchmodel_queued_rows") == 0
    assert value(samples, "torchmodel_ready") == 0


def test_every_family_of_the_table_can_be_filled_and_nothing_else_is_shown() -> None:
    text = render([used().snapshot()]).decode()
    shown = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(shown) == {family.name.removesuffix("_total") for family in FAMILIES}
    assert [name for name, family in shown.items() if not family.samples] == []


def test_every_sample_of_ours_names_its_model() -> None:
    for name, labels in read(used()):
        assert (dict(labels).get("model") == "m") == name.startswith("torchmodel_"), name


def test_the_digest_and_the_proofs_are_told() -> None:
    samples = read(used())
    assert value(samples, "torchmodel_model_info", sha256="ab" * 32, format="state-dict", device="cpu") == 1
    assert value(samples, "torchmodel_batching_enabled") == 1
    assert value(samples, "torchmodel_batch_proof_difference", rows="4", padded="false") == 1e-7
    assert value(samples, "torchmodel_batch_proof_difference", rows="4", padded="true") == 2e-7
    assert value(samples, "torchmodel_cold_start_seconds", phase="warm_up") == 4


@pytest.mark.parametrize(
    ("observed", "bucket"),
    [
        pytest.param(0.0, "0.0005", id="nothing falls into the first bucket"),
        pytest.param(0.001, "0.001", id="a bound belongs to the bucket below it"),
        pytest.param(0.0010001, "0.0025", id="what is over a bound belongs to the next"),
        pytest.param(31.0, "+Inf", id="what is over the last bound is counted all the same"),
    ],
)
def test_a_value_is_counted_in_its_bucket_and_in_all_above(observed: float, bucket: str) -> None:
    metrics = Metrics("m")
    metrics.compute_s.observe(observed)
    samples = read(metrics)
    counts = {
        dict(labels)["le"]: count
        for (name, labels), count in samples.items()
        if name == "torchmodel_compute_seconds_bucket"
    }
    assert min((le for le, count in counts.items() if count), key=float) == bucket
    assert [count for _, count in sorted(counts.items(), key=lambda item: float(item[0]))][-1] == 1
    assert value(samples, "torchmodel_compute_seconds_sum") == observed
    assert value(samples, "torchmodel_compute_seconds_count") == 1


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        pytest.param("torchmodel_requests_total", {"dialect": "v2", "code": "200"}, 2, id="counters are summed"),
        pytest.param("torchmodel_request_seconds_count", {"dialect": "v2"}, 2, id="histograms are summed"),
        pytest.param("torchmodel_request_seconds_sum", {"dialect": "v2"}, 0.006, id="sums of histograms are summed"),
        pytest.param("torchmodel_in_flight_requests", {}, 5, id="what is in flight is summed"),
        pytest.param("torchmodel_queued_rows", {}, 9, id="waiting rows are summed"),
        pytest.param("torchmodel_ready", {}, 0, id="ready when all are"),
        pytest.param("torchmodel_batch_rows_limit", {}, 8, id="the lowest limit of a batch is shown"),
        pytest.param("torchmodel_cold_start_seconds", {"phase": "load"}, 3, id="the start took as long as its longest"),
        pytest.param("torchmodel_processes", {}, 2, id="processes are counted"),
    ],
)
def test_two_processes_amount_to(name: str, labels: dict[str, str], expected: float) -> None:
    first, second = used(), used()
    for process, in_flight, queued, ready, limit in ((first, 2, 4, True, 32), (second, 3, 5, False, 8)):
        process.watch("torchmodel_in_flight_requests", lambda n=in_flight: n)
        process.watch("torchmodel_queued_rows", lambda n=queued: n)
        process.watch("torchmodel_ready", lambda n=ready: n)
        process.watch("torchmodel_batch_rows_limit", lambda n=limit: n)
    assert value(read(first, second), name, **labels) == pytest.approx(expected)


def test_info_is_said_once_for_all_processes() -> None:
    samples = read(used(), used(), used())
    assert value(samples, "torchmodel_model_info", sha256="ab" * 32, format="state-dict", device="cpu") == 1


def test_what_one_process_alone_has_seen_is_kept() -> None:
    samples = read(used("v1"), used("v2"))
    assert value(samples, "torchmodel_requests_total", dialect="v1", code="200") == 1
    assert value(samples, "torchmodel_requests_total", dialect="v2", code="200") == 1


def test_the_process_numbers_add_up() -> None:
    key = ("process_resident_memory_bytes", ())
    one = read(Metrics("m"))[key]
    assert 1.5 * one < read(Metrics("m"), Metrics("m"))[key] < 2.5 * one


@pytest.mark.parametrize(
    "gauge",
    [
        pytest.param("torchmodel_no_such_thing", id="a gauge that does not exist"),
        pytest.param("torchmodel_requests_total", id="a counter"),
        pytest.param("torchmodel_model_info", id="a gauge with labels"),
    ],
)
def test_only_gauges_without_labels_are_watched(gauge: str) -> None:
    with pytest.raises(KeyError):
        Metrics("m").watch(gauge, float)


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(msgspec.msgpack.encode([1, 2]), id="another document"),
    ],
)
def test_what_is_no_snapshot_is_refused(snapshot: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        render([snapshot])


def test_a_snapshot_of_another_version_is_refused_rather_than_added_up_wrong() -> None:
    ours = Metrics("m").snapshot()
    other = msgspec.msgpack.encode(Snapshot([], [("torchmodel_compute_seconds", ("m",), [1, 2], 3.0)]))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        render([ours, other])


def test_a_histogram_starts_empty() -> None:
    histogram = Histogram("torchmodel_compute_seconds")
    assert (sum(histogram.counts), histogram.total) == (0, 0.0)


def test_the_reference_page_is_up_to_date() -> None:
    path = Path("docs/generate_reference.py")
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = (path.parent / "reference" / "metrics.md").read_text()
    assert written == generator.PAGES["metrics.md"](), "run: python docs/generate_reference.py"
