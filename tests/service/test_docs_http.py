"""The reference for clients against a real server: examples print what the page shows, every route and error code is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from testkit.doc_pages import blocks_of
from testkit.local_run import command_environment
from testkit.models import linear_config, write_receipt
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.codec import encode_error
from torchmodel_runtime.codec.inflate import UNSUPPORTED
from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.ports.grpc_status import code_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "http.md"
TEXT = PAGE.read_text()
ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    """The example's rule, exactly: y = 0.1 x0 + ... + 1.0 x9 + 0.5."""
    folder = tmp_path_factory.mktemp("linear")
    weight = torch.arange(1, 11, dtype=torch.float32).reshape(1, 10) / 10
    save_file({"weight": weight, "bias": torch.tensor([0.5])}, folder / "linear.safetensors")
    write_receipt(folder, "linear.safetensors")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 10])],
        outputs=[TensorSpec(name="prediction", datatype="FP32", shape=[-1, 1])],
    )
    with RuntimeProcess(linear_config(folder, signature=signature)) as process:
        yield process.wait_ready()


def rounded(text: str) -> str:
    """Numbers to two digits."""
    return re.sub(r"-?\d+\.\d*", lambda number: f"{float(number.group()):.2f}", text).strip()


def test_every_example_prints_what_the_page_shows(server: RuntimeProcess, tmp_path: Path) -> None:
    blocks = blocks_of(PAGE)
    assert len(blocks) >= 20
    environment = command_environment(tmp_path)
    for block, shown in zip(blocks[::2], blocks[1::2], strict=True):
        assert shown.language == "text"
        text = block.text.replace(ADDRESS, server.url)
        assert text != block.text, f"asks nobody:\n{text}"
        command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        # answers end without a line's end: each command gets its own
        lines = [[*command, f"{line}; echo"] for line in joined(text)] if block.language == "bash" else [command]
        printed = ""
        for line in lines:
            done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{block.text}{done.stdout}{done.stderr}"
            printed += done.stdout.strip() + "\n" if done.stdout.strip() else ""
        assert rounded(printed) == rounded(shown.text), block.text


def joined(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


ROUTE = re.compile(r"`(GET|POST|PUT) (/\S*)`")
ROUTES = sorted({(method, path) for method, path in ROUTE.findall(TEXT) if path != "/openapi.json"})


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_of_the_page_is_there(server: RuntimeProcess, method: str, path: str) -> None:
    status = server.request(method, path.replace("{m}", "linear"), b"" if method != "GET" else None)[0]
    assert status in (200, 400)  # 400: the empty body


def test_every_route_that_the_server_describes_is_on_the_page(server: RuntimeProcess) -> None:
    for path, methods in server.get("/openapi.json")[1]["paths"].items():
        for method, operation in methods.items():
            if "200" in operation["responses"] and (method, path) != ("options", "/"):
                written = path.replace("linear", "{m}")
                assert f"`{method.upper()} {written}`" in TEXT or f"`{written}`" in TEXT, (method, path)


CODES = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \| (?:`([A-Z_]+)`)? *\| (?:`(\w+)`)? *\| .+ \|$", TEXT, re.MULTILINE)
OF_AIOHTTP = {"METHOD_NOT_ALLOWED": 405, "EXPECTATION_FAILED": 417}


def codes_in_the_source() -> dict[str, int]:
    found = {UNSUPPORTED: 415, **OF_AIOHTTP}
    for file in (ROOT / "runtime" / "torchmodel_runtime").rglob("*.py"):
        for status, code in re.findall(r'RequestError\(\s*(\d+), "([A-Z_]+)"', file.read_text()):
            found[code] = int(status)
    return found


def test_every_code_of_the_source_is_on_the_page_with_its_status() -> None:
    assert {code: int(status) for code, status, _, _ in CODES} == codes_in_the_source()


@pytest.mark.parametrize(("code", "status", "grpc", "kind"), CODES, ids=[line[0] for line in CODES])
def test_a_code_has_the_forms_that_the_page_says(code: str, status: str, grpc: str, kind: str) -> None:
    error = RequestError(int(status), code, "why")
    assert json.loads(encode_error("v2", error).body) == {"error": "why"}
    if kind:
        assert json.loads(encode_error("torchserve", error).body) == {
            "code": int(status),
            "type": kind,
            "message": "why",
        }
    if grpc:
        assert code_of(int(status)).name == grpc


def test_what_aiohttp_refuses_has_the_codes_of_the_page(server: RuntimeProcess) -> None:
    assert server.request("DELETE", "/v2/models/linear")[0] == 405
    assert server.request("GET", "/ping", headers={"Expect": "more"})[0] == 417
    metrics = server.get("/metrics")[1].decode()
    for code in OF_AIOHTTP:
        assert f'reason="{code}"' in metrics


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT):
        assert (PAGE.parent / target).exists(), target
