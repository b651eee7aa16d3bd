"""The HTTP port: routes of three dialects. Inference goes to `Server.answer`; what the server is, is told here.

Health and readiness answer from the first moment. The middleware turns what aiohttp itself refuses into the error body of
the path's dialect. Made by `__main__`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import msgspec
from aiohttp import web

from torchmodel_runtime import errors
from torchmodel_runtime.bytebudget import Hold
from torchmodel_runtime.codec import make_plan
from torchmodel_runtime.errors import RequestError, quote
from torchmodel_runtime.exchange import OCTETS, Answer, Call, Dialect, media_type
from torchmodel_runtime.metrics import CONTENT_TYPE, render
from torchmodel_runtime.openapi import make_document
from torchmodel_runtime.ports import catalogue
from torchmodel_runtime.server import VERSION, Server
from torchmodel_runtime.startup import LoadedModel
from torchmodel_runtime.telemetry import REQUEST_ID

logger = logging.getLogger(__name__)

MAX_INDEX_BYTES = 4096
"""Of the body of POST /v2/repository/index, which has one field."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestPort:
    """The routes over one server."""

    def __init__(self, server: Server, ask_all: Callable[[], Awaitable[list[bytes]]]) -> None:
        self._server = server
        self._ask_all = ask_all
        self._config = server.config

    def make_app(self) -> web.Application:
        """The routes. Other model names reach the same handlers, which name the one that is served."""
        app = web.Application(middlewares=[self._answer_errors], client_max_size=self._config.serving.max_request_bytes)
        add = functools.partial(app.router.add_route, expect_handler=self._expect)
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            add("POST", f"{path}/infer", self._infer_v2)
            add("GET", f"{path}/ready", self._model_ready)
            add("GET", f"{path}/config", self._model_config)
            add("GET", f"{path}/stats", self._not_here("stats"))
            add("GET", path, self._model_metadata)
        add("GET", "/v2", self._server_metadata)
        add("GET", "/v2/health/live", self._live)
        add("GET", "/v2/health/ready", self._health_ready)
        add("GET", "/v2/models", self._list_names)
        add("POST", "/v2/repository/index", self._repository_index)
        add("POST", "/v2/repository/models/{name}/{action:load|unload}", self._not_here("load"))
        add("POST", "/v1/models/{name:[^/:]+}:predict", self._predict_v1)
        add("POST", "/v1/models/{name:[^/:]+}:explain", self._not_here("explain"))
        add("GET", "/v1/models", self._list_names)
        add("GET", "/v1/models/{name:[^/:]+}", self._model_ready)
        for path in ("/predictions/{name}", "/predictions/{name}/{version}"):
            for method in ("POST", "PUT", "GET"):  # PUT: curl --upload-file, as TorchServe's pages show it
                add(method, path, self._predict_torchserve)
                add(method, path.replace("predictions", "explanations"), self._not_here("explain"))
        add("POST", "/invocations", self._predict_torchserve)  # TorchServe's older route, and SageMaker's
        add("GET", "/models", self._list_torchserve)
        add("GET", "/models/{name}", self._describe)
        add("GET", "/models/{name}/{version}", self._describe)
        add("GET", "/ping", self._ping)
        add("GET", "/metrics", self._show_metrics)
        add("GET", "/openapi.json", self._show_openapi)
        add("OPTIONS", "/", self._show_openapi)
        add("GET", "/", self._alive)
        return app

    # --- inference ---

    async def _infer_v2(self, request: web.Request) -> web.Response:
        return await self._infer(request, "v2")

    async def _predict_v1(self, request: web.Request) -> web.Response:
        return await self._infer(request, "v1")

    async def _predict_torchserve(self, request: web.Request) -> web.Response:
        return await self._infer(request, "torchserve")

    async def _infer(self, request: web.Request, dialect: Dialect) -> web.Response:
        self._server.metrics.ways["parsed", "framework"] += 1
        hold = self._server.open_hold()
        answer = await self._server.answer(dialect, request.headers, self._read(request, dialect, hold), hold)
        return self._respond(answer)

    async def _read(self, request: web.Request, dialect: Dialect, hold: Hold) -> Call:
        """The whole request; what can be refused without its body is refused before that is read."""
        name = request.match_info.get("name") or request.query.get("model_name", self._config.name)
        version = _version_of(request, dialect)
        self._server.admit(name, version)
        body = await self._read_body(request, self._config.serving.max_request_bytes, hold)
        return Call(
            dialect=dialect,
            model=name,
            body=body,
            headers=request.headers,
            content_type=media_type(request.headers.get("Content-Type", OCTETS)),
            version=version,
        )

    async def _read_body(self, request: web.Request, max_bytes: int, hold: Hold | None = None) -> bytes:
        """All of it; RequestError 408 when it comes too slowly, 413 when it is too much, 429 when hold has no room for it."""
        setting = "" if hold is None else " (serving.maxRequestBytes)"
        too_large = errors.too_large(f"the body is larger than {max_bytes} bytes{setting}")
        limit_s = self._config.serving.limits.body_timeout_seconds
        if (request.content_length or 0) > max_bytes:
            raise too_large
        pieces: list[bytes] = []
        left = max_bytes
        try:
            async with asyncio.timeout(limit_s):
                while piece := await request.content.readany():
                    left -= len(piece)
                    if left < 0:
                        raise too_large
                    if hold is not None:
                        hold.borrow(len(piece))
                    pieces.append(piece)
        except TimeoutError:
            raise errors.body_too_slow(limit_s) from None
        return b"".join(pieces)

    def _respond(self, answer: Answer) -> web.Response:
        response = web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers
        )
        if self._server.is_leaving:
            response.force_close()  # the client's next connection goes to another replica
        return response

    # --- what is served, and whether ---

    async def _live(self, _: web.Request) -> web.Response:
        return _json({"live": True})

    async def _health_ready(self, _: web.Request) -> web.Response:
        return self._say_ready({"ready": self._server.ready})

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._check_name(request)
        return self._say_ready({"name": self._config.name, "ready": self._server.ready})

    async def _server_metadata(self, _: web.Request) -> web.Response:
        return _json(catalogue.server_metadata(version("torchmodel-operator")))

    async def _model_metadata(self, request: web.Request) -> web.Response:
        self._check_name(request)
        model = self._model()
        return _json(catalogue.model_metadata(self._config.name, VERSION, model.task.signature, model.report))

    async def _model_config(self, request: web.Request) -> web.Response:
        self._check_name(request)
        model = self._model()
        return _json(catalogue.model_config(self._config.name, model.task.signature, model.report))

    async def _list_names(self, _: web.Request) -> web.Response:
        return _json({"models": [self._config.name]})

    async def _repository_index(self, request: web.Request) -> web.Response:
        body = await self._read_body(request, MAX_INDEX_BYTES)
        try:
            wanted = msgspec.json.decode(body, type=_IndexRequest) if body else _IndexRequest()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.invalid(f"body: {error}") from None
        ready = self._server.ready
        return _json(catalogue.repository_index(self._config.name, VERSION, ready=ready, only_ready=wanted.ready))

    async def _list_torchserve(self, _: web.Request) -> web.Response:
        return _json(catalogue.list_models(self._config, self._model().report.uri))

    async def _describe(self, request: web.Request) -> web.Response:
        wanted = _version_of(request, "torchserve")
        self._server.check_name(request.match_info["name"], None if wanted == "all" else wanted)
        return _json(catalogue.describe(self._config, VERSION, self._model().report, ready=self._server.ready))

    async def _show_openapi(self, _: web.Request) -> web.Response:
        task = self._model().task
        plan = make_plan(self._config.name, VERSION, task.signature, task.media, self._config.serving)
        return _json(make_document(plan, version("torchmodel-operator")))

    def _not_here(self, what: str) -> Handler:
        async def refuse(request: web.Request) -> web.StreamResponse:
            self._check_name(request)
            raise RequestError(501, "NOT_IMPLEMENTED", catalogue.NOT_HERE[what])

        return refuse

    def _model(self) -> LoadedModel:
        """RequestError 503 while it is loading."""
        if self._server.model is None:
            raise errors.unavailable(f"model {self._config.name!r} is still loading")
        return self._server.model

    async def _ping(self, _: web.Request) -> web.Response:
        return self._say_ready({"status": "Healthy" if self._server.ready else "Unhealthy"})

    async def _alive(self, _: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=render(await self._ask_all()), headers={"Content-Type": CONTENT_TYPE})

    def _say_ready(self, document: object) -> web.Response:
        return _json(document, 200 if self._server.ready else 503)

    def _check_name(self, request: web.Request) -> None:
        self._server.check_name(request.match_info["name"], request.match_info.get("version"))

    # --- errors ---

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors of the routes and of aiohttp, in the dialect of the path."""
        try:
            response = await handler(request)
        except RequestError as error:
            response = self._respond(self._server.refuse(_dialect_of(request.path), error))
        except web.HTTPException as error:
            translated = RequestError(error.status, error.reason.upper().replace(" ", "_"), _explain(request, error))
            response = self._respond(self._server.refuse(_dialect_of(request.path), translated))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            logger.exception("a request failed inside the server", extra={"fields": {"path": request.path}})
            response = self._respond(self._server.refuse(_dialect_of(request.path), errors.internal()))
        if REQUEST_ID not in response.headers:
            response.headers[REQUEST_ID] = self._server.telemetry.request_id(request.headers)
        if self._server.is_leaving:
            response.force_close()
        return response

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """The client asks before it sends its body (RFC 9110, 10.1.1). aiohttp calls this before the middlewares."""
        if request.headers["Expect"].strip().lower() != "100-continue":
            return await self._answer_errors(request, _refuse_expectation)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
        return None


async def _refuse_expectation(_: web.Request) -> web.StreamResponse:
    raise web.HTTPExpectationFailed


class _IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Of POST /v2/repository/index (Triton, model repository extension)."""

    ready: bool = False


def _version_of(request: web.Request, dialect: Dialect) -> str | None:
    """As in the path. 1.0 is what TorchServe calls the first version of a model, and its clients ask for it."""
    version = request.match_info.get("version")
    return VERSION if dialect == "torchserve" and version == "1.0" else version


def _dialect_of(path: str) -> Dialect:
    if path.startswith(("/predictions", "/ping", "/models", "/explanations", "/invocations")):
        return "torchserve"
    return "v1" if path.startswith("/v1") else "v2"


def _explain(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method} is not allowed on {request.path}, {' or '.join(sorted(error.allowed_methods))} is"
    if isinstance(error, web.HTTPNotFound):
        return f"no route {request.path}; see GET /v2"
    if isinstance(error, web.HTTPExpectationFailed):
        return f"Expect {quote(request.headers['Expect'])}: must be 100-continue"
    return error.reason


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/json")
