"""The how-to page for clients: each snippet is run as it stands, with the real clients, and prints what the page shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit.client_environment import client_python
from testkit.doc_pages import Block, blocks_of, commands_of
from testkit.local_run import LocalRun

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "use-your-client.md"
BLOCKS = [block for block in blocks_of(PAGE) if block.language != "console"]
SNIPPETS = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))
"""What is run, and what it prints."""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The page's addresses and the real ones of the linear example, served with gRPC."""
    folder = tmp_path_factory.mktemp("linear")
    shutil.copytree(ROOT / "examples" / "linear", folder, dirs_exist_ok=True)
    subprocess.run([sys.executable, folder / "prepare.py"], check=True, capture_output=True)
    manifest = folder / "torchmodel.yaml"
    manifest.write_text(manifest.read_text() + "  serving:\n    grpc: {enabled: true}\n")
    with LocalRun(manifest, folder, "--port", "0", "--grpc-port", "0", cwd=folder) as served:
        http = served.wait_url().removeprefix("http://")
        (grpc,) = re.findall(r"gRPC at (\S+)", served.output)
        yield {"127.0.0.1:8080": http, "127.0.0.1:8081": grpc}


def rounded(text: str) -> str:
    """Numbers to two digits, since the trained example says 5.999 one day and 6.001 another."""
    return re.sub(r"-?\d+\.\d*", lambda number: f"{float(number.group()):.2f}", text).strip()


def run(block: Block, addresses: dict[str, str], folder: Path) -> str:
    text = block.text
    for written, real in addresses.items():
        text = text.replace(written, real)
    if block.language == "python":
        commands = [[client_python(), "-c", text]]
    else:
        commands = [["bash", "-euo", "pipefail", "-c", line] for line in commands_of(block._replace(text=text))]
    printed = []
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    return "\n".join(printed)


@pytest.mark.parametrize(
    ("snippet", "shown"), SNIPPETS, ids=["triton over HTTP", "triton over gRPC", "kserve", "curl", "requests"]
)
def test_a_snippet_prints_what_the_page_shows(
    addresses: dict[str, str], tmp_path: Path, snippet: Block, shown: Block
) -> None:
    assert snippet.language in ("python", "bash")
    assert shown.language == "text"
    assert rounded(run(snippet, addresses, tmp_path)) == rounded(shown.text)
