"""Who is measured: our runtime and its rivals, how each is started, asked and configured.

Pure tables and functions. A rival is one file under servers/ and one entry here. Settings are the best of those tried on
two cores: more than one worker with one thread each where the forward is the cost, dynamic batching where it pays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads import Workload

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
OURS = "torchmodel"

PLAIN = {"mlp": "plain", "resnet18": "raw", "encoder": "plain"}
V2 = {"mlp": "v2", "resnet18": "v2-binary", "encoder": "v2"}


@dataclass(frozen=True)
class Settings:
    """What a rival is given for one workload; see servers/bench_models.py."""

    workers: int = 2
    threads: int = 1
    max_batch: int = 1
    delay_ms: int = 0
    api_servers: int = 1

    def __str__(self) -> str:
        batching = f", batch {self.max_batch} within {self.delay_ms} ms" if self.max_batch > 1 else ", no batching"
        return f"{self.workers} x {self.threads} thread{'s' * (self.threads > 1)}{batching}"


@dataclass(frozen=True)
class Target:
    """One server: `command` with {python}, {servers} and {port} filled in, asked at `path`, or at its workload's own."""

    name: str
    command: str
    path: str
    formats: Mapping[str, str]
    requirements: tuple[str, ...] = ()
    """Pinned, beyond the COMMON ones; the first is the product."""
    settings: Mapping[str, Settings] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def url_path(self, workload: str) -> str:
        """Where a workload is posted to."""
        return self.paths.get(workload, self.path)


COMMON = ("torch", "numpy")
"""The versions are the repository's own, from constraints.txt, so that everyone runs the same torch."""

_SCRIPT = "{python} {servers}/"
_TWO_WORKERS = dict.fromkeys(PLAIN, Settings())

TARGETS = {
    target.name: target
    for target in (
        Target(OURS, "{python} -m torchmodel_runtime", "/v2/models/bench/infer", V2),
        Target(
            "mosec",
            _SCRIPT + "mosec_server.py --address 127.0.0.1 --port {port} --timeout 60000 --log-level error",
            "/inference",
            PLAIN,
            ("mosec==0.9.8", "orjson==3.13.0"),
            {"mlp": Settings(1, 1, 32, 1), "resnet18": Settings(2, 1, 4, 1), "encoder": Settings()},
        ),
        Target(
            "aiohttp",
            _SCRIPT + "aiohttp_server.py",
            "/predict",
            PLAIN,
            ("aiohttp==3.14.5", "uvloop==0.23.0", "orjson==3.13.0"),
            _TWO_WORKERS,
        ),
        Target(
            "fastapi",
            _SCRIPT + "fastapi_server.py",
            "/predict",
            PLAIN,
            ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "orjson==3.13.0"),
            _TWO_WORKERS,
        ),
        Target(
            "kserve",
            _SCRIPT + "kserve_server.py",
            "/v1/models/bench:predict",
            {**V2, "mlp": "v1", "encoder": "v1"},
            ("kserve==0.21.0", "httptools==0.9.0", "orjson==3.13.0"),
            _TWO_WORKERS,
            {"resnet18": "/v2/models/bench/infer"},
        ),
        Target(
            "litserve",
            _SCRIPT + "litserve_server.py",
            "/predict",
            {**PLAIN, "resnet18": "base64"},
            ("litserve==0.2.19", "httptools==0.9.0", "orjson==3.13.0"),
            {"mlp": Settings(1, 1, 32, 2, api_servers=2), "resnet18": Settings(), "encoder": Settings()},
        ),
    )
}


def server_config(workload: Workload, folder: Path, port: int, serving: Mapping[str, Any]) -> dict[str, Any]:
    """The ServerConfig of our own runtime (docs/runtime-contract.md), its defaults but for what the workload needs.

    folder holds the weights and their receipt; `serving` goes over the workload's own, field by field, lists and all.
    """
    # the encoder takes its mask by name; without padding only requests of equal length share a batch
    padding = {"batching": {"padding": {"value": 0, "mask": "keep"}}} if workload.name == "encoder" else {}
    return {
        "name": "bench",
        "checkpointFolder": str(folder),
        "architecture": {"entrypoint": workload.entrypoint},
        "signature": {
            "inputs": [{"name": "x", "datatype": workload.datatype, "shape": [-1, *workload.shape]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, workload.outputs]}],
        },
        "serving": {**padding, **serving},
        "host": "127.0.0.1",
        "port": port,
    }


def make_environment(
    target: Target, workload: Workload, folder: Path, port: int, serving: Mapping[str, Any]
) -> dict[str, str]:
    """The variables a server is started with, beyond those of the machine."""
    if target.name == OURS:
        return {"TORCHMODEL_SERVER_CONFIG": json.dumps(server_config(workload, folder, port, serving))}
    settings = target.settings[workload.name]
    return {
        "BENCH_WORKLOAD": workload.name,
        "BENCH_PORT": str(port),
        "BENCH_WORKERS": str(settings.workers),
        "BENCH_THREADS": str(settings.threads),
        "BENCH_MAX_BATCH": str(settings.max_batch),
        "BENCH_DELAY_MS": str(settings.delay_ms),
        "BENCH_API_SERVERS": str(settings.api_servers),
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
    }
