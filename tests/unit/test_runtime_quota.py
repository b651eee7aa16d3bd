"""CPU quota from made-up cgroup files, and the small parts around the start of a process."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import msgspec
import pytest
from torchmodel_runtime.__main__ import parse_config
from torchmodel_runtime.config import Failure
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.logs import JsonFormatter
from torchmodel_runtime.quota import read_cpu_quota, read_memory_room, whole_cpus
from torchmodel_runtime.termination import TERMINATION_LOG_BYTES, encode_failure


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/pod/ctr\n", {"pod/cpu.max": "200000 100000", "pod/ctr/cpu.max": "max 100000"}, 2.0),
        ("0::/pod/ctr\n", {"pod/cpu.max": "400000 100000", "pod/ctr/cpu.max": "50000 100000"}, 0.5),
        ("0::/../../outside\n", {"cpu.max": "100000 100000"}, 1.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/p\n0::/\n", {"cpu/p/cpu.cfs_quota_us": "100000", "cpu/p/cpu.cfs_period_us": "50000"}, 2.0),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "x y"}, None),
    ],
    ids=[
        "v2",
        "v2 without a limit",
        "no files",
        "v2 limit above",
        "the tightest counts",
        "a path outside the namespace",
        "v1",
        "v1 without a limit",
        "v1 beside v2",
        "one word",
        "two words",
    ],
)
def test_quota(tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    own_path = tmp_path / "own"
    own_path.write_text(own)
    assert read_cpu_quota(write(tmp_path / "cgroup", files), own_path) == quota


@pytest.mark.parametrize(
    ("quota", "cpus", "whole"), [(1.5, 8, 1), (0.3, 8, 1), (None, 8, 8), (16.0, 8, 8), (2.9, 8, 2)]
)
def test_cpus_follow_the_quota_rounded_down(quota: float | None, cpus: int, whole: int) -> None:
    assert whole_cpus(quota, cpus) == whole


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "1000\n", "memory.current": "400\n"}, 600),
        ({"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 300\ninactive_file 500\n"}, 600),
        ({"memory.max": "max\n", "memory.current": "400\n"}, 5 * 1024),
        ({"memory.max": "1000\n", "memory.current": "1400\n"}, 0),
        ({}, 5 * 1024),
    ],
    ids=[
        "what the limit leaves",
        "idle pages of files count as free",
        "no limit: what the machine has",
        "over the limit",
        "no cgroup",
    ],
)
def test_memory_room_is_what_the_limit_or_the_machine_leaves(tmp_path: Path, files: dict[str, str], room: int) -> None:
    root = write(tmp_path / "cgroup", files)
    root.mkdir(exist_ok=True)
    meminfo = write(tmp_path, {"meminfo": "MemTotal: 9 kB\nMemAvailable:    5 kB\n"}) / "meminfo"
    assert read_memory_room(root, tmp_path / "none", meminfo) == room


def test_a_failure_fits_the_termination_log() -> None:
    failure = Failure(reason="R", message="ä" * 9000, next_step="do this")
    encoded = encode_failure(failure)
    assert len(encoded) <= TERMINATION_LOG_BYTES
    short = msgspec.json.decode(encoded, type=Failure)
    assert (short.reason, short.next_step) == ("R", "do this")
    assert len(short.message) > 1000
    assert (
        msgspec.json.decode(encode_failure(Failure(reason="R", message="m", next_step="n")), type=Failure).message
        == "m"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no configuration"),
        (b"{", "not valid"),
        (b'{"name": "m", "checkpointFolder": "/x", "architecture": {"entrypoint": "a:B"}, "typo": 1}', "typo"),
        (b'{"name": "m", "checkpointFolder": "/x", "architecture": {"entrypoint": "a"}}', "$.architecture.entrypoint"),
        (
            b'{"name": "m", "checkpointFolder": "/x", "architecture": {"entrypoint": "a:B"},'
            b' "serving": {"batching": {"maxSize": 0}}}',
            "$.serving.batching.maxSize",
        ),
    ],
)
def test_a_wrong_configuration_names_the_field(text: bytes, words: str) -> None:
    with pytest.raises(StartError) as caught:
        parse_config(text)
    assert caught.value.failure.reason == "ConfigInvalid"
    assert words in caught.value.failure.message


def test_a_log_line_is_json_with_fields_and_traceback() -> None:
    try:
        raise ValueError("broken\nhere")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())
    record.fields = {"path": Path("/x"), "rows": 3}
    line = JsonFormatter("m").format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == "it failed"
    assert parsed["model"] == "m"
    assert parsed["path"] == "/x"
    assert "ValueError: broken" in parsed["traceback"]


def test_a_failure_fits_whichever_of_its_texts_is_long() -> None:
    encoded = encode_failure(Failure(reason="R", message="not there", next_step="'\n" * 9000))
    assert len(encoded) <= TERMINATION_LOG_BYTES
    assert msgspec.json.decode(encoded, type=Failure).message == "not there"
