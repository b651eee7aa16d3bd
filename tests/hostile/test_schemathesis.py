"""Schemathesis against real processes: whatever follows from the OpenAPI document, or breaks it, is answered as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.asking import failures_inside
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from testkit.tiny_media import serve_echo, serve_images, serve_texts
from torchmodel_runtime.config import ServerConfig, Serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not those of acceptance: the schemas list a few sizes of many, and say of other types than JSON that they are bytes."""

CONFIGURATION = Path(__file__).parent / "schemathesis.toml"

FEWEST_REQUESTS = 300


def serve_linear(folder: Path) -> ServerConfig:
    save_linear(folder)
    return linear_config(folder, serving=Serving(processes=1, workers=1, threads=1))


@pytest.mark.parametrize(
    ("serve", "examples"),
    [(serve_linear, 25), (serve_echo, 10), (serve_images, 20), (serve_texts, 20)],
    ids=["a tensor", "several tensors", "pictures", "texts"],
)
def test_what_follows_from_the_document_is_answered_as_it_says(
    serve: Callable[[Path], ServerConfig], examples: int, tmp_path: Path
) -> None:
    with RuntimeProcess(serve(tmp_path)) as server:
        server.wait_ready()
        done = run_schemathesis(server.url, examples, tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        (generated,) = re.findall(r"(\d+) generated", done.stdout)
        assert int(generated) > FEWEST_REQUESTS
        assert failures_inside(server) == []


def run_schemathesis(url: str, examples: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """All operations; good requests and bad, the same in every run."""
    options: dict[str, Any] = {
        "--checks": ",".join(CHECKS),
        "--phases": "examples,coverage,fuzzing",
        "--max-examples": examples,
        "--request-timeout": 15,
        "--warnings": "off",
        "--suppress-health-check": "all",
    }
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        CONFIGURATION,
        "--no-color",
        "run",
        f"{url}/openapi.json",
    ]
    arguments = [str(word) for option in options.items() for word in option]
    return subprocess.run(
        [*command, *arguments, "--generation-deterministic"], capture_output=True, text=True, cwd=folder, check=False
    )
