"""The fetcher as the pod runs it: a process with an environment, an exit code, a log and a termination log."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import msgspec
import pytest
from testkit import faulty_http as faulty
from torchmodel_runtime import config as contract
from torchmodel_runtime.config import Failure, Receipt

CONTENT = os.urandom(4_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Run:
    """One fetcher process and what it left behind."""

    def __init__(self, folder):
        self.termination_log = folder / "termination-log"

    async def start(self, environment=None, arguments=(), **fields):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "torchmodel_runtime.fetch", *arguments,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "TORCHMODEL_TERMINATION_LOG": str(self.termination_log),
                **({contract.FETCH_CONFIG_VARIABLE: json.dumps(fields)} if fields else {}),
                **(environment or {}),
            },
        )  # fmt: skip
        return self

    async def finish(self):
        output, log = await self.process.communicate()
        assert output == b""
        self.log = log.decode()
        return self.process.returncode

    def outcome(self, kind):
        return msgspec.json.decode(self.termination_log.read_bytes(), type=kind)


@pytest.fixture
async def server():
    async with faulty.FaultyServer() as server:
        yield server


@pytest.fixture
def fetcher(tmp_path):
    return Run(tmp_path)


async def test_success_leaves_a_receipt_and_a_log_of_json_lines(server, fetcher, tmp_path):
    server.serve("/m.pth", CONTENT)
    await fetcher.start(uri=server.url("/m.pth"), sha256=SHA256, destination=str(tmp_path / "out"))
    assert await fetcher.finish() == 0
    assert fetcher.outcome(Receipt) == msgspec.json.decode((tmp_path / "out/receipt.json").read_bytes(), type=Receipt)
    lines = [json.loads(line) for line in fetcher.log.splitlines()]
    assert [line["message"] for line in lines] == ["fetching", "fetched"]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)


async def test_the_config_may_come_from_a_file(server, fetcher, tmp_path):
    server.serve("/m.pth", CONTENT)
    config = {"uri": server.url("/m.pth"), "destination": str(tmp_path / "out")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    await fetcher.start(arguments=["--config", str(tmp_path / "config.json")])
    assert await fetcher.finish() == 0


@pytest.mark.parametrize(
    ("fields", "reason", "part"),
    [
        pytest.param({}, contract.CONFIG_INVALID, "TORCHMODEL_FETCH_CONFIG", id="no config"),
        pytest.param({"uri": "/m", "destination": "/d", "x": 1}, contract.CONFIG_INVALID, "`x`", id="unknown field"),
        pytest.param({"uri": "/m", "destination": "d"}, contract.CONFIG_INVALID, "absolute", id="relative destination"),
        pytest.param({"uri": "/m", "destination": "/d", "sha256": "A"}, contract.CONFIG_INVALID, "sha256", id="no digest"),
        pytest.param({"uri": "gs://b/m", "destination": "/d"}, contract.CONFIG_INVALID, "got gs", id="unknown scheme"),
        pytest.param({"uri": "/none.pth", "destination": "/d"}, contract.CHECKPOINT_NOT_FOUND, "/none.pth", id="no file"),
        pytest.param(
            {"uri": "http://127.0.0.1:9/m", "destination": "/dev/null/d"}, contract.CONFIG_INVALID, "/dev/null", id="no folder"
        ),
        pytest.param(
            {"uri": "s3://b-b/m", "destination": "/d", "credentials": "/none"}, contract.CREDENTIALS_INVALID, "folder",
            id="no credentials folder",
        ),
    ],
)  # fmt: skip
async def test_a_permanent_failure_is_told_in_the_termination_log(fetcher, fields, reason, part):
    await fetcher.start(**fields)
    assert await fetcher.finish() == contract.EXIT_PERMANENT
    failure = fetcher.outcome(Failure)
    assert failure.reason == reason
    assert part in failure.message
    assert failure.next_step


async def test_a_failure_that_may_pass_has_another_exit_code(server, fetcher, tmp_path):
    server.serve("/m.pth", b"", always=faulty.Answer(503, {"Retry-After": "0"}))
    await fetcher.start(uri=server.url("/m.pth"), destination=str(tmp_path / "out"))
    assert await fetcher.finish() == contract.EXIT_RETRYABLE
    assert fetcher.outcome(Failure).reason == contract.FETCH_FAILED


async def test_a_long_failure_fits_into_what_kubernetes_keeps(server, fetcher, tmp_path):
    await fetcher.start(uri=server.url("/" + "'" * 6000), destination=str(tmp_path / "out"))
    assert await fetcher.finish() == contract.EXIT_PERMANENT
    assert fetcher.termination_log.stat().st_size < 4096
    assert fetcher.outcome(Failure).reason == contract.CHECKPOINT_NOT_FOUND


async def test_nothing_secret_is_written_anywhere(server, fetcher, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "authorization").write_text("Bearer HUSH")
    server.serve("/m.pth", CONTENT, faulty.Cut(100), always=faulty.Answer(403))
    await fetcher.start(
        uri=server.url("/m.pth?token=HUSH"),
        destination=str(tmp_path / "out"),
        credentials=str(secret),
        cache=str(tmp_path / "c"),
    )
    assert await fetcher.finish() == contract.EXIT_PERMANENT
    secret_file = secret / "authorization"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != secret_file]
    assert "interrupted" in fetcher.log
    assert b"HUSH" not in fetcher.log.encode() + b"".join(written)


def test_the_process_starts_without_torch_numpy_and_a_web_server():
    program = (
        "import sys, torchmodel_runtime.fetch.__main__, torchmodel_runtime.fetch.web, torchmodel_runtime.fetch.buckets;"
    )
    program += "print([name for name in ('torch', 'numpy', 'aiohttp.web', 'kubernetes') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program]).strip() == b"[]"


async def test_sigterm_ends_it_and_the_next_run_goes_on(server, fetcher, tmp_path):
    server.serve("/m.pth", CONTENT, faulty.Slow(4_000_000))
    fields = {"uri": server.url("/m.pth"), "sha256": SHA256, "destination": str(tmp_path / "out")}
    await fetcher.start(**fields)
    await server.sent(2_500_000)
    fetcher.process.send_signal(signal.SIGTERM)
    assert await fetcher.finish() == 143
    assert not fetcher.termination_log.exists()
    before = server.bytes_sent
    await fetcher.start(**fields)
    assert await fetcher.finish() == 0
    assert server.bytes_sent - before < len(CONTENT)
    assert "range" in server.requests[-1].headers


@pytest.mark.parametrize("cache", [False, True], ids=["into the destination", "into a cache"])
async def test_killed_at_any_moment_it_leaves_a_verified_file_or_a_clean_retry(server, fetcher, tmp_path, cache):
    server.serve("/m.pth", CONTENT, always=faulty.Slow(20_000_000))
    out, store = tmp_path / "out", tmp_path / "cache"
    fields = {"uri": server.url("/m.pth"), "sha256": SHA256, "destination": str(out)}
    fields |= {"cache": str(store)} if cache else {}
    final = store / "sha256" / SHA256 / "m.pth" if cache else out / "m.pth"
    finished = resumed = 0
    for number in range(15):
        await fetcher.start(**fields)
        asked = len(server.requests)
        # from start-up over the transfer to after the last rename
        aim = server.bytes_sent + (number % 8) * len(CONTENT) // 6
        steps = [asyncio.ensure_future(server.sent(aim)), asyncio.ensure_future(fetcher.process.wait())]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        steps[0].cancel()
        if fetcher.process.returncode is None:
            fetcher.process.kill()
        await steps[1]
        finished += await fetcher.finish() == 0
        resumed += any("range" in request.headers for request in server.requests[asked:])
        if final.exists():
            assert hashlib.sha256(final.read_bytes()).hexdigest() == SHA256
        if (out / "receipt.json").exists():
            assert msgspec.json.decode((out / "receipt.json").read_bytes(), type=Receipt).sha256 == SHA256
            assert final.exists()
        if final.exists():
            # so that every round has something to do
            shutil.rmtree(out)
            shutil.rmtree(store, ignore_errors=True)
    await fetcher.start(**fields)
    assert await fetcher.finish() == 0
    assert hashlib.sha256(final.read_bytes()).hexdigest() == SHA256
    assert list(((store / "incoming") if cache else (out / ".incoming")).iterdir()) == []
    assert resumed >= 3, f"{finished} finished, {resumed} resumed"


async def test_processes_of_one_digest_share_a_cache_and_survive_the_death_of_the_first(server, tmp_path):
    server.serve("/m.pth", CONTENT, faulty.Slow(4_000_000))
    runs = []
    for name in "abc":
        (tmp_path / name).mkdir()
        runs.append(Run(tmp_path / name))
        fields = {"uri": server.url("/m.pth"), "sha256": SHA256, "destination": str(tmp_path / name / "out")}
        await runs[-1].start(**fields, cache=str(tmp_path / "cache"))
        if name == "a":
            await server.sent(1_500_000)
    runs[0].process.kill()
    assert await runs[0].finish() == -signal.SIGKILL
    assert [await run.finish() for run in runs[1:]] == [0, 0]
    assert sorted(run.outcome(Receipt).cached for run in runs[1:]) == [False, True]
    assert len(server.requests) == 2
    assert "range" in server.requests[1].headers
