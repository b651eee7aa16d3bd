"""What the server tells of itself and its model, in the words of each dialect. Pure; `rest` serves it.

One model, one version: lists have one element, and what would load, unload or count by version is answered by 501, with the
place where it is to be had.
"""

from __future__ import annotations

from typing import Any

from torchmodel_runtime.config import ModelReport, ServerConfig, Signature, TensorSpec

SERVER_NAME = "torchmodel"

EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository(index)"]
"""Of Open Inference Protocol V2, by Triton's names."""

NOT_HERE = {
    "stats": "statistics are not kept in this form; see GET /metrics",
    "load": "models are not loaded by requests: a process serves one model, change the TorchModel resource",
    "explain": "this server explains no predictions",
}
"""What the dialects have routes for and this server does not do, and what to do instead."""


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2."""
    return {"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS}


def model_metadata(name: str, version: str, signature: Signature, report: ModelReport) -> dict[str, Any]:
    """GET /v2/models/{name}: the protocol's fields; `parameters` is ours."""
    return {
        "name": name,
        "versions": [version],
        "platform": _platform(report),
        "inputs": signature.inputs,
        "outputs": signature.outputs,
        "parameters": report,
    }


def model_config(name: str, signature: Signature, report: ModelReport) -> dict[str, Any]:
    """GET /v2/models/{name}/config: Triton's model configuration, as far as its words fit; dims are without the batch."""
    return {
        "name": name,
        "platform": _platform(report),
        "backend": "pytorch",
        "max_batch_size": report.batching.max_size if report.batching.enabled else 1,
        "input": [_config_tensor(spec) for spec in signature.inputs],
        "output": [_config_tensor(spec) for spec in signature.outputs],
    }


def repository_index(name: str, version: str, *, ready: bool, only_ready: bool) -> list[dict[str, str]]:
    """POST /v2/repository/index."""
    if only_ready and not ready:
        return []
    state = {"state": "READY", "reason": ""} if ready else {"state": "UNAVAILABLE", "reason": "loading or leaving"}
    return [{"name": name, "version": version, **state}]


def describe(config: ServerConfig, version: str, report: ModelReport, *, ready: bool) -> list[dict[str, Any]]:
    """GET /models/{name}: TorchServe's description, those of its fields that mean something here."""
    workers = report.parallelism.processes * report.parallelism.workers
    worker = {"status": "READY" if ready else "UNLOADING", "gpu": report.device != "cpu"}
    return [
        {
            "modelName": config.name,
            "modelVersion": version,
            "modelUrl": report.uri,
            "engine": "Torch",
            "runtime": "python",
            "minWorkers": workers,
            "maxWorkers": workers,
            "batchSize": report.batching.max_size if report.batching.enabled else 1,
            "maxBatchDelay": config.serving.batching.max_delay_milliseconds,
            "responseTimeout": config.serving.request_timeout_seconds,
            "loadedAtStartup": True,
            "workers": [{"id": str(index), **worker} for index in range(workers)],
        }
    ]


def list_models(config: ServerConfig, uri: str) -> dict[str, Any]:
    """GET /models: TorchServe's list."""
    return {"models": [{"modelName": config.name, "modelUrl": uri}]}


def _platform(report: ModelReport) -> str:
    return "pytorch_" + report.format.replace("-", "_")


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": spec.shape[1:]}
