"""Two thousand bad requests leave a process no larger than a few hundred do. bench/memory.py measures ten thousand, closely."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.asking import as_one, ask, failures_inside
from hostile.attack import ROW, Attack, v2
from hostile.attacks import arrayfiles, compression, routes, torchserve, v1, v2_binary, v2_json
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Serving

TABLES = (v2_json, v2_binary, v1, torchserve, arrayfiles, compression, routes)
WARM_UP = 2
"""Times that all tables are sent first: the process that decodes is started, pools and caches fill."""
REQUESTS = 2000
GROWTH = 1.1
"""Generous: a leak of ten kilobytes a request is more, and the allocator's moods are less."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    with RuntimeProcess(linear_config(folder, serving=Serving(processes=1, workers=1, threads=1))) as process:
        yield process.wait_ready()


def test_there_are_enough_attacks_and_no_two_alike() -> None:
    attacks = list(_attacks("linear"))
    assert len(attacks) >= 450
    assert len({(attack.path, attack.method, attack.body, attack.fields().__repr__()) for attack in attacks}) == len(
        attacks
    )


def test_memory_stays(server: RuntimeProcess) -> None:
    attacks = list(_attacks(server.config.name))
    good = _good_answers(server)
    for attack in attacks * WARM_UP:
        assert ask(server, as_one(attack))[0] == attack.status, attack.title
    before = resident_bytes(server.process.pid)
    for attack in itertools.islice(itertools.cycle(attacks), REQUESTS):
        assert ask(server, as_one(attack))[0] == attack.status, attack.title
    after = resident_bytes(server.process.pid)
    assert set(after) == set(before)  # nothing died, nothing was started
    assert sum(after.values()) <= GROWTH * sum(before.values())
    assert _good_answers(server) == good
    assert failures_inside(server) == []


def _attacks(model: str) -> Iterator[Attack]:
    return (attack.for_model(model) for table in TABLES for attack in table.ATTACKS)


def _good_answers(server: RuntimeProcess) -> list[Any]:
    answers = [
        server.post("/v2/models/linear/infer", v2()),
        server.post("/v1/models/linear:predict", {"instances": [ROW]}),
    ]
    assert [status for status, _ in answers] == [200, 200]
    return answers


def resident_bytes(pid: int) -> dict[int, int]:
    """Of a process and its children, by process."""
    found = {pid: _resident_bytes(pid)}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= resident_bytes(int(child))
    return found


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
