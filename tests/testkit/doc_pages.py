"""Markdown pages as scripts: ```bash blocks are run in the page's order, blocks with title="…" are written as files first.

`torchmodel run` in a page is started beside the rest and interrupted at the page's end; 127.0.0.1:8080 becomes its real address.
Blocks marked console, text or nothing are for reading.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from testkit.local_run import LocalRun, command_environment

FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    language: str
    title: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order, those inside lists without their indentation."""
    return [
        Block(language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, title, text in FENCE.findall(page.read_text())
    ]


def commands_of(block: Block) -> Iterator[str]:
    """The command lines of a block, continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip():
            yield line


def run_page(page: Path, cwd: Path, home: Path) -> str:
    """Run a page from top to bottom; its output. Raises CalledProcessError or RuntimeError for a command that fails."""
    outputs = []
    with ExitStack() as stack:
        url, served = "http://127.0.0.1:8080", None
        for block in blocks_of(page):
            if block.title:
                (cwd / block.title).write_text(block.text.replace("http://127.0.0.1:8080", url))
            for command in commands_of(block) if block.language == "bash" else ():
                if command.startswith("torchmodel run "):
                    served = stack.enter_context(LocalRun(command.split()[2], home, cwd=cwd))
                    url = served.wait_url()
                else:
                    outputs.append(run_command(command, url, cwd, home))
        if served is not None:
            code = served.interrupt()
            if code != 0:
                raise RuntimeError(f"torchmodel run ended with {code}:\n{served.output}")
            outputs.append(served.output)
    return "\n".join(outputs)


def run_command(command: str, url: str, cwd: Path, home: Path) -> str:
    """One command line by bash."""
    command = command.replace("http://127.0.0.1:8080", url)
    if re.search(r"examples/\w+/compare\.py$", command):
        command += f" --url {url}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env=command_environment(home),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"$ {command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return f"$ {command}\n{done.stdout}"
