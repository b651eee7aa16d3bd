"""What the gRPC port tells of the server and its model, as `catalogue` has it; and what Triton's clients may ask for besides.

Made by `grpc_v2`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import grpc

from torchmodel_runtime import errors
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.ports import catalogue
from torchmodel_runtime.ports.grpc_status import Context, Handler, finish, make_handler
from torchmodel_runtime.protos import open_inference_pb2 as oip
from torchmodel_runtime.server import VERSION, Server
from torchmodel_runtime.startup import LoadedModel

SERVICE = "inference.GRPCInferenceService"

_NO_SHARED_MEMORY = "no shared memory is read; send tensors in the request"
_SET_BY_RESOURCE = "this is set by the TorchModel resource, spec.serving.telemetry"

_NOT_HERE = {
    "ModelStatistics": catalogue.NOT_HERE["stats"],
    "RepositoryModelLoad": catalogue.NOT_HERE["load"],
    "RepositoryModelUnload": catalogue.NOT_HERE["load"],
    "ModelStreamInfer": "requests are not streamed; call ModelInfer for each",
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": _SET_BY_RESOURCE,
    "LogSettings": _SET_BY_RESOURCE,
}
"""Triton's methods that this server does not have, and what to do instead."""


class Told:
    """The methods that tell, over one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._name = server.config.name

    def handlers(self) -> dict[str, Handler]:
        """By method."""
        methods: dict[str, tuple[type[Any], Any]] = {
            "ServerLive": (oip.ServerLiveRequest, self._server_live),
            "ServerReady": (oip.ServerReadyRequest, self._server_ready),
            "ModelReady": (oip.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (oip.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (oip.ModelConfigRequest, self._model_config),
            "RepositoryIndex": (oip.RepositoryIndexRequest, self._repository_index),
        }
        return {f"/{SERVICE}/{name}": make_handler(self._server, kind, tell) for name, (kind, tell) in methods.items()}

    def _server_live(self, _: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def _server_ready(self, _: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._server.ready)

    def _model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        self._server.check_name(request.name, request.version or None)
        return oip.ModelReadyResponse(ready=self._server.ready)

    def _server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(**catalogue.server_metadata(version("torchmodel-operator")))

    def _model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        told = catalogue.model_metadata(self._name, VERSION, model.task.signature, model.report)
        del told["parameters"]  # ours, for which the message has no field
        for direction in ("inputs", "outputs"):
            told[direction] = [
                {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in told[direction]
            ]
        return oip.ModelMetadataResponse(**told)

    def _model_config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        model = self._model(request.name, request.version)
        told = catalogue.model_config(self._name, model.task.signature, model.report)
        return oip.ModelConfigResponse(config=oip.ModelConfig(**told))

    def _repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        ready = self._server.ready
        index = catalogue.repository_index(self._name, VERSION, ready=ready, only_ready=request.ready)
        entry = oip.RepositoryIndexResponse.ModelIndex
        return oip.RepositoryIndexResponse(models=[entry(**model) for model in index])

    def _model(self, name: str, wanted_version: str) -> LoadedModel:
        """RequestError 404 for another, 503 while it is loading."""
        self._server.check_name(name, wanted_version or None)
        if self._server.model is None:
            raise errors.unavailable(f"model {self._name!r} is still loading")
        return self._server.model

    def not_here(self, method: str) -> Handler:
        """Whatever else is called, by its path: a sentence instead of nothing."""
        service, _, name = method.strip("/").partition("/")
        sentence = _NOT_HERE.get(name) if service == SERVICE else None
        if sentence is None:
            sentence = f"no method {method[:200]}; {SERVICE} and grpc.health.v1.Health are served"

        async def refuse(_requests: AsyncIterator[bytes], context: Context) -> bytes:
            return await finish(context, self._server.refuse("grpc", RequestError(501, "NOT_IMPLEMENTED", sentence)))

        return grpc.stream_unary_rpc_method_handler(refuse)
