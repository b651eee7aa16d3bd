"""Request ids, trace context, access log and spans of a real process."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from testkit.models import mlp_config, save_mlp
from testkit.runtime_process import RuntimeProcess, find_free_port
from torchmodel_runtime.config import EXIT_PERMANENT, Batching, Serving, Telemetry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"Traceparent": f"00-{TRACE}-{PARENT}-01", "Tracestate": "congo=t61rcWkgMzE"}

ROW = [1.0] * 10
V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 10], "data": ROW + ROW}]}
JSON = {"Content-Type": "application/json"}


class Collector:
    """An OTLP/HTTP receiver that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/v1/traces" or self.headers["Content-Type"] != "application/x-protobuf":
                    self.send_error(400)
                    return
                for spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resource = {a.key: a.value.string_value for a in spans.resource.attributes}
                    for scope in spans.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trace(self, trace_id: str) -> dict[str, Span]:
        """Spans of one trace by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}


def attributes(span: Span) -> dict[str, str | int]:
    """A span's attributes as plain values."""
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def log_lines(server: RuntimeProcess, message: str) -> list[dict[str, Any]]:
    """The log's lines with that message."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["message"] == message]


def wait_for_line(server: RuntimeProcess, request_id: str) -> dict[str, Any]:
    """The access log's line of a request."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in log_lines(server, "request"):
            if line["requestId"] == request_id:
                return line
        time.sleep(0.02)
    raise AssertionError(f"no line of {request_id}:\n{server.log}")


def python_path(folder: Path) -> dict[str, str]:
    """Modules of a folder go before all others."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def make_config(folder: Path, telemetry: Telemetry) -> Any:
    """The MLP that fails on a poisoned row."""
    save_mlp(folder)
    return mlp_config(folder, serving=Serving(batching=Batching(max_size=4), processes=1, telemetry=telemetry))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    config = make_config(tmp_path_factory.mktemp("telemetry"), Telemetry(access_log_ratio=1))
    with RuntimeProcess(config) as process:
        yield process.wait_ready()


REQUESTS = [
    pytest.param("POST", "/v2/models/mlp/infer", V2, 200, id="a V2 answer"),
    pytest.param("POST", "/v1/models/mlp:predict", {"instances": [ROW]}, 200, id="a V1 answer"),
    pytest.param("POST", "/predictions/mlp", [ROW], 200, id="a TorchServe answer"),
    pytest.param("POST", "/v2/models/mlp/infer", b"{", 400, id="a V2 error"),
    pytest.param("POST", "/v1/models/mlp:predict", b"{", 400, id="a V1 error"),
    pytest.param("POST", "/predictions/mlp", b"{", 400, id="a TorchServe error"),
    pytest.param("POST", "/v2/models/other/infer", V2, 404, id="another model"),
    pytest.param("POST", "/nowhere", V2, 404, id="no such route"),
    pytest.param("DELETE", "/v2/models/mlp/infer", None, 405, id="a method that is not allowed"),
    pytest.param("GET", "/v2/health/ready", None, 200, id="readiness"),
    pytest.param("GET", "/v2/models/mlp", None, 200, id="metadata"),
    pytest.param("GET", "/metrics", None, 200, id="metrics"),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
def test_the_request_id_comes_back_with(server: RuntimeProcess, method: str, path: str, body: Any, status: int) -> None:
    answers = [server.request(method, path, body, {**JSON, "X-Request-ID": "from-the-client"})]
    answers += [server.request(method, path, body, JSON) for _ in range(2)]
    assert [answer[0] for answer in answers] == [status] * 3
    given, *made = [answer[1].get_all("X-Request-ID") for answer in answers]
    assert given == ["from-the-client"]
    assert made[0] != made[1]
    assert [len(ids) for ids in made] == [1, 1]


def test_a_large_body_that_does_not_take_the_hot_route_has_its_id_too(server: RuntimeProcess) -> None:
    padded = json.dumps(V2) + " " * 200_000
    status, headers, _ = server.request(
        "POST", "/v2/models/mlp/infer", padded.encode(), {**JSON, "X-Request-ID": "big"}
    )
    assert (status, headers.get_all("X-Request-ID")) == (200, ["big"])
    line = wait_for_line(server, "big")
    assert line["requestBytes"] == len(padded)
    assert line["decodeSeconds"] < line["seconds"]


def test_a_request_id_that_cannot_be_logged_is_replaced(server: RuntimeProcess) -> None:
    _, headers, _ = server.request("POST", "/v2/models/mlp/infer", V2, {**JSON, "X-Request-ID": "x" * 129})
    assert headers["X-Request-ID"] != "x" * 129


def test_the_id_of_a_v2_body_is_another_thing(server: RuntimeProcess) -> None:
    body = {**V2, "id": "in-the-body"}
    _, headers, answer = server.request("POST", "/v2/models/mlp/infer", body, {**JSON, "X-Request-ID": "in-the-header"})
    assert (headers["X-Request-ID"], answer["id"]) == ("in-the-header", "in-the-body")


def test_an_answer_has_a_line_with_its_steps(server: RuntimeProcess) -> None:
    headers = {**JSON, **TRACED, "X-Request-ID": "line"}
    _, _, answer = server.request("POST", "/v2/models/mlp/infer", V2, headers)
    line = wait_for_line(server, "line")
    assert {key: line[key] for key in ("dialect", "status", "model", "rows", "batchRows", "traceId", "level")} == {
        "dialect": "v2",
        "status": 200,
        "model": "mlp",
        "rows": 2,
        "batchRows": 2,
        "traceId": TRACE,
        "level": "info",
    }
    assert line["requestBytes"] == len(json.dumps(V2))
    assert line["responseBytes"] >= len(json.dumps(answer, separators=(",", ":")))
    steps = [line[f"{step}Seconds"] for step in ("decode", "queue", "compute", "encode")]
    assert all(step >= 0 for step in steps)
    assert 0 < sum(steps) <= line["seconds"] + 1e-5


def test_a_refusal_has_a_line_with_its_code_and_no_steps(server: RuntimeProcess) -> None:
    server.request("POST", "/predictions/mlp", b"{", {**JSON, "X-Request-ID": "refused"})
    line = wait_for_line(server, "refused")
    assert (line["dialect"], line["status"], line["code"]) == ("torchserve", 400, "INVALID_ARGUMENT")
    assert "computeSeconds" not in line


def test_what_was_computed_is_in_the_metrics(server: RuntimeProcess) -> None:
    server.request("POST", "/v2/models/mlp/infer", V2, JSON)
    text = server.get("/metrics")[1].decode()
    numbers = {
        name: float(number) for name, number in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    }
    for step in ("request", "decode", "encode"):
        assert numbers[f'torchmodel_{step}_seconds_count{{dialect="v2",model="mlp"}}'] >= 1
    for step in ("prepare", "queue_wait", "compute"):
        assert numbers[f'torchmodel_{step}_seconds_count{{model="mlp"}}'] >= 1
    assert numbers['torchmodel_request_bytes_total{dialect="v2",model="mlp"}'] >= len(json.dumps(V2))
    assert numbers['torchmodel_response_bytes_total{dialect="v2",model="mlp"}'] > 0
    assert numbers['torchmodel_batch_rows_limit{model="mlp"}'] == 4
    assert numbers['torchmodel_batching_enabled{model="mlp"}'] == 1
    assert numbers['torchmodel_connections{model="mlp"}'] >= 1
    assert numbers['torchmodel_processes{model="mlp"}'] == 1
    assert numbers['torchmodel_in_flight_requests{model="mlp"}'] == 0
    assert numbers["process_open_fds"] > 3


def test_without_a_sample_only_errors_of_the_server_are_logged(tmp_path: Path) -> None:
    with RuntimeProcess(make_config(tmp_path, Telemetry(access_log_ratio=0))) as server:
        server.wait_ready()
        poisoned = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [666.0] * 10}]}
        assert server.request("POST", "/v2/models/mlp/infer", V2, {**JSON, "X-Request-ID": "fine"})[0] == 200
        assert server.request("POST", "/v2/models/mlp/infer", b"{", {**JSON, "X-Request-ID": "refused"})[0] == 400
        assert server.request("POST", "/v2/models/mlp/infer", poisoned, {**JSON, "X-Request-ID": "failed"})[0] == 500
        wait_for_line(server, "failed")
        assert [line["requestId"] for line in log_lines(server, "request")] == ["failed"]
        assert log_lines(server, "request")[0]["code"] == "MODEL_FAILED"


def test_a_traced_request_arrives_at_the_collector_with_its_steps(tmp_path: Path) -> None:
    with Collector() as collector:
        settings = Telemetry(access_log_ratio=1, otlp_endpoint=collector.endpoint, trace_ratio=0)
        with RuntimeProcess(make_config(tmp_path, settings)) as server:
            server.wait_ready()
            before_ns = time.time_ns()
            assert server.request("POST", "/v2/models/mlp/infer", V2, {**JSON, **TRACED, "X-Request-ID": "t"})[0] == 200
            after_ns = time.time_ns()
            not_sampled = {**JSON, "Traceparent": f"00-{'ab' * 16}-{PARENT}-00"}
            assert server.request("POST", "/v2/models/mlp/infer", V2, not_sampled)[0] == 200
            assert server.request("POST", "/v2/models/mlp/infer", V2, JSON)[0] == 200  # of ours none is traced
            assert server.stop() == 0, server.log
        spans = collector.trace(TRACE)
        assert len(collector.spans) == len(spans)
    assert collector.resource["service.name"] == "mlp"
    request = spans.pop("infer mlp")
    assert set(spans) == {"decode", "prepare", "queue", "compute", "encode"}
    assert (request.parent_span_id.hex(), request.kind, request.trace_state) == (
        PARENT,
        Span.SPAN_KIND_SERVER,
        TRACED["Tracestate"],
    )
    assert attributes(request) == {
        "torchmodel.model": "mlp",
        "torchmodel.dialect": "v2",
        "torchmodel.rows": 2,
        "torchmodel.request_id": "t",
        "http.response.status_code": 200,
    }
    assert attributes(spans["compute"]) == {"torchmodel.batch.rows": 2}
    assert before_ns <= request.start_time_unix_nano <= request.end_time_unix_nano <= after_ns
    for step in spans.values():
        assert step.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= step.start_time_unix_nano <= step.end_time_unix_nano
        assert step.end_time_unix_nano <= request.end_time_unix_nano
    order = [spans[name].start_time_unix_nano for name in ("decode", "prepare", "queue", "compute", "encode")]
    assert order == sorted(order)


def test_a_trace_of_our_own_has_one_id_in_log_and_spans_and_says_what_failed(tmp_path: Path) -> None:
    with Collector() as collector:
        settings = Telemetry(access_log_ratio=1, otlp_endpoint=collector.endpoint, trace_ratio=1)
        with RuntimeProcess(make_config(tmp_path, settings)) as server:
            server.wait_ready()
            poisoned = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [666.0] * 10}]}
            assert server.request("POST", "/v2/models/mlp/infer", poisoned, {**JSON, "X-Request-ID": "bad"})[0] == 500
            assert server.request("POST", "/v2/models/mlp/infer", b"{", {**JSON, "X-Request-ID": "refused"})[0] == 400
            lines = {name: wait_for_line(server, name) for name in ("bad", "refused")}
            assert server.stop() == 0, server.log
    failed = collector.trace(lines["bad"]["traceId"])["infer mlp"]
    refused = collector.trace(lines["refused"]["traceId"])["infer mlp"]
    assert not failed.parent_span_id
    assert (failed.status.code, attributes(failed)["error.type"]) == (Status.STATUS_CODE_ERROR, "MODEL_FAILED")
    assert (refused.status.code, attributes(refused)["error.type"]) == (Status.STATUS_CODE_UNSET, "INVALID_ARGUMENT")


def test_a_collector_that_is_away_costs_no_request(tmp_path: Path) -> None:
    settings = Telemetry(otlp_endpoint=f"http://127.0.0.1:{find_free_port()}", trace_ratio=1)
    with RuntimeProcess(make_config(tmp_path, settings)) as server:
        server.wait_ready()
        started_s = time.monotonic()
        assert {server.post("/v2/models/mlp/infer", V2)[0] for _ in range(700)} == {200}
        assert time.monotonic() - started_s < 20
        assert server.stop(15) == 0, server.log


def test_traces_without_the_extra_end_the_start_with_its_name(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "opentelemetry.py").write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")\n")
    config = make_config(tmp_path / "model", Telemetry(otlp_endpoint="http://collector:4318"))
    with RuntimeProcess(config, python_path(hidden)) as server:
        assert server.wait_exit(30) == EXIT_PERMANENT
        failure = server.failure()
    assert failure is not None
    assert failure.reason == "ConfigInvalid"
    assert "serving.telemetry.otlpEndpoint" in failure.message
    assert "torchmodel-operator[runtime,tracing]" in failure.next_step


def test_without_a_collector_nothing_of_opentelemetry_is_imported(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "opentelemetry.py").write_text("raise SystemExit('imported')\n")
    with RuntimeProcess(make_config(tmp_path / "model", Telemetry()), python_path(hidden)) as server:
        server.wait_ready()
        assert server.request("POST", "/v2/models/mlp/infer", V2, {**JSON, **TRACED})[0] == 200
