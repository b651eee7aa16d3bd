"""The HTTP port: routes of three dialects, one way through for every inference request.

Reading path: `Server.infer`, one line a step: `codec.decode_request`, the task's `prepare`, `batcher.submit`, the task's
`finish`, `codec.encode_response`. Health and readiness answer from the first moment; inference from `serve` on. The middleware
is the only place that turns an error into a response. Made and driven by `__main__`; knows neither torch nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from torchmodel_runtime import codec, errors
from torchmodel_runtime.batcher import Batcher, Worker
from torchmodel_runtime.codec import Dialect
from torchmodel_runtime.config import ServerConfig
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.metrics import CONTENT_TYPE, Metrics
from torchmodel_runtime.startup import LoadedModel
from torchmodel_runtime.tasks import Task, Work
from torchmodel_runtime.tensors import Arrays

logger = logging.getLogger(__name__)

SERVER_NAME = "torchmodel"
VERSION = "1"
"""A process serves one version; it answers to `versions/1` for clients that insist on one."""

JSON_TYPES = (
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/vnd.kserve+json",
)
"""Types that may hold JSON: the two that aiohttp and curl fill in when the client names none are let through to the parser."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The application and its state: loading, serving, draining."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._model: LoadedModel | None = None
        self._batcher: Batcher | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ready = False
        self._admitting = True
        self.metrics = Metrics(config.name)

    def make_app(self) -> web.Application:
        """The routes. Other model names reach the same handlers, which name the one that is served."""
        app = web.Application(middlewares=[self._answer_errors], client_max_size=self._config.serving.max_request_bytes)
        add = app.router.add_route
        for path in ("/v2/models/{name}", f"/v2/models/{{name}}/versions/{VERSION}"):
            add("POST", f"{path}/infer", self._infer_v2)
            add("GET", f"{path}/ready", self._model_ready)
            add("GET", path, self._model_metadata)
        add("POST", "/v1/models/{name:[^/:]+}:predict", self._predict_v1)
        add("POST", "/predictions/{name}", self._predict_torchserve)
        add("PUT", "/predictions/{name}", self._predict_torchserve)  # curl --upload-file, as TorchServe's pages show it
        add("GET", "/v2/health/live", self._live)
        add("GET", "/v2/health/ready", self._health_ready)
        add("GET", "/v2", self._server_metadata)
        add("GET", "/v1/models", self._list_v1)
        add("GET", "/v1/models/{name:[^/:]+}", self._model_ready)
        add("GET", "/ping", self._ping)
        add("GET", "/metrics", self._show_metrics)
        add("GET", "/", self._alive)
        return app

    def serve(self, model: LoadedModel, worker: Worker) -> None:
        """The model is loaded, warm and proven: take requests."""
        self._batcher = Batcher(model.runner, worker, self._config.serving, model.max_batch_rows, self.metrics)
        self._model = model
        self._set_ready(True)
        self.metrics.tell_loaded(model.report)

    async def drain(self) -> bool:
        """Withdraw, then refuse, then finish what was admitted; False when that took longer than allowed."""
        self._set_ready(False)
        if self._model is not None:
            await asyncio.sleep(self._config.drain_delay_seconds)
        self._admitting = False
        if self._batcher is not None:
            self._batcher.hurry()
        try:
            await asyncio.wait_for(self._idle.wait(), self._config.serving.drain_timeout_seconds)
        except asyncio.TimeoutError:
            logger.error("draining timed out", extra={"fields": {"in_flight": self._in_flight}})
            return False
        return True

    # --- inference ---

    async def _infer_v2(self, request: web.Request) -> web.Response:
        return await self._track(request, "v2")

    async def _predict_v1(self, request: web.Request) -> web.Response:
        return await self._track(request, "v1")

    async def _predict_torchserve(self, request: web.Request) -> web.Response:
        return await self._track(request, "torchserve")

    async def _track(self, request: web.Request, dialect: Dialect) -> web.Response:
        """Answer by `infer`; meanwhile the request is in flight, afterwards it is counted by its outcome."""
        started_s = time.monotonic()
        self._in_flight += 1
        self._idle.clear()
        self.metrics.in_flight.set(self._in_flight)
        status = 500
        try:
            response = await self.infer(request, dialect)
            status = response.status
            return response
        except RequestError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = 499  # the client left (nginx's number; HTTP has none)
            raise
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()
            self.metrics.in_flight.set(self._in_flight)
            self.metrics.count_request(dialect, status, time.monotonic() - started_s)

    async def infer(self, request: web.Request, dialect: Dialect) -> web.Response:
        """Answer one request: decode, prepare, wait for the model, finish, encode."""
        model, batcher = self._admit(request)
        task = model.task
        body = await self._read(request)
        is_medium = self._is_medium(request, dialect, task)
        decoded = codec.decode_medium(body) if is_medium else codec.decode_request(dialect, body, task.signature)
        work = await _prepare(task, decoded.inputs)
        results = await batcher.submit(work.parts, self._config.serving.request_timeout_seconds)
        outputs = task.finish(work, results)
        reply = _make_reply(task, dialect, outputs, is_medium)
        answer = codec.encode_response(dialect, self._config.name, decoded, task.signature, outputs, reply)
        return web.Response(body=answer, content_type="application/json")

    def _admit(self, request: web.Request) -> tuple[LoadedModel, Batcher]:
        self._check_name(request)
        if not self._admitting:
            raise errors.unavailable("the server is shutting down")
        if self._model is None or self._batcher is None:
            raise errors.unavailable(f"model {self._config.name!r} is still loading")
        max_rows = self._config.serving.queue.max_rows
        if self._in_flight > max_rows + self._model.max_batch_rows:
            # more than queue and batch can hold, were each one row: refuse before the body is read and decoded
            raise errors.queue_full(max_rows, max_rows, retry_after_s=1)
        return self._model, self._batcher

    async def _read(self, request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            limit = self._config.serving.max_request_bytes
            raise errors.too_large(f"the body is larger than {limit} bytes (serving.maxRequestBytes)") from None

    def _is_medium(self, request: web.Request, dialect: Dialect, task: Task) -> bool:
        """True when the body is the medium itself, False when it is JSON; RequestError 415 for anything else."""
        if "Inference-Header-Content-Length" in request.headers:
            raise errors.unsupported_media("the binary tensor data extension is not offered (GET /v2); send JSON data")
        content_type = request.content_type
        if task.media and dialect != "v1" and content_type.startswith(task.media):
            return True
        if content_type == "application/json":
            return False
        if task.media and dialect == "torchserve" and not content_type.startswith("multipart/"):
            return True  # TorchServe's clients send files without naming their type
        if content_type in JSON_TYPES:
            return False
        taken = ["application/json", *(f"{kind}*" if kind.endswith("/") else kind for kind in task.media)]
        raise errors.unsupported_media(f"Content-Type {content_type}: must be {' or '.join(taken)}")

    def _check_name(self, request: web.Request) -> None:
        name = request.match_info["name"]
        if name != self._config.name:
            raise errors.not_found(f"no model {name!r} here; this server has {self._config.name!r}")

    # --- what is served, and whether ---

    async def _live(self, _: web.Request) -> web.Response:
        return _json({"live": True})

    async def _health_ready(self, _: web.Request) -> web.Response:
        return _json({"ready": self._ready}, 200 if self._ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._check_name(request)
        return _json({"name": self._config.name, "ready": self._ready}, 200 if self._ready else 503)

    async def _server_metadata(self, _: web.Request) -> web.Response:
        return _json({"name": SERVER_NAME, "version": version("torchmodel-operator"), "extensions": []})

    async def _model_metadata(self, request: web.Request) -> web.Response:
        self._check_name(request)
        if self._model is None:
            raise errors.unavailable(f"model {self._config.name!r} is still loading")
        signature, report = self._model.task.signature, self._model.report
        return _json(
            {
                "name": self._config.name,
                "versions": [VERSION],
                "platform": "pytorch_" + report.format.replace("-", "_"),
                "inputs": signature.inputs,
                "outputs": signature.outputs,
                "parameters": report,
            }
        )

    async def _list_v1(self, _: web.Request) -> web.Response:
        return _json({"models": [self._config.name]})

    async def _ping(self, _: web.Request) -> web.Response:
        return _json({"status": "Healthy" if self._ready else "Unhealthy"}, 200 if self._ready else 503)

    async def _alive(self, _: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def _set_ready(self, ready: bool) -> None:
        self._ready = ready
        self.metrics.ready.set(ready)

    # --- errors ---

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The only translator of errors into responses, by the dialect of the path."""
        try:
            response = await handler(request)
        except RequestError as error:
            response = self._error_response(request, error)
        except web.HTTPException as error:
            translated = RequestError(error.status, error.reason.upper().replace(" ", "_"), _explain(request, error))
            response = self._error_response(request, translated)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            logger.exception("a request failed inside the server", extra={"fields": {"path": request.path}})
            response = self._error_response(request, RequestError(500, "INTERNAL", "internal error"))
        if not self._ready and self._model is not None:
            response.force_close()  # draining: the client's next connection goes to another replica
        return response

    def _error_response(self, request: web.Request, error: RequestError) -> web.Response:
        self.metrics.count_rejected(error.code)
        body = codec.encode_error(_dialect_of(request.path), error)
        response = web.Response(status=error.status, body=body, content_type="application/json")
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response


async def _prepare(task: Task, inputs: Arrays) -> Work:
    """The parts for the module; what takes long, such as decoding media, leaves the event loop."""
    if task.is_heavy(inputs):
        return await asyncio.to_thread(task.prepare, inputs)
    return task.prepare(inputs)


def _make_reply(task: Task, dialect: Dialect, outputs: Arrays, is_medium: bool) -> Any:
    """The outputs in the task's own words, for the dialects that have no form for tensors."""
    if dialect == "torchserve":
        return task.reply(outputs, single=is_medium)
    return task.rows(outputs) if dialect == "v1" else None


def _dialect_of(path: str) -> Dialect:
    if path.startswith(("/predictions", "/ping")):
        return "torchserve"
    return "v1" if path.startswith("/v1") else "v2"


def _explain(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method} is not allowed on {request.path}, {' or '.join(sorted(error.allowed_methods))} is"
    if isinstance(error, web.HTTPNotFound):
        return f"no route {request.path}; see GET /v2"
    return error.reason


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/json")
