"""A start that cannot work: exit code, termination log, and what it tells the reader. One real process for each kind.

That each defect is told apart is tested in tests/unit/test_runtime_startup.py, without a process for each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from testkit.models import linear_config, save_linear, write_receipt
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import (
    EXIT_PERMANENT,
    EXIT_RETRYABLE,
    Architecture,
    CodeFile,
    Failure,
    Security,
    ServerConfig,
    Serving,
)
from torchmodel_runtime.engine.pulse import INTERVAL_S as PULSE_INTERVAL_S


def no_receipt(folder: Path) -> ServerConfig:
    return linear_config(folder)


def nested(folder: Path) -> ServerConfig:
    torch.save({"epoch": 3, "model_state_dict": torch.nn.Linear(10, 1).state_dict()}, folder / "w.pth")
    write_receipt(folder, "w.pth")
    return linear_config(folder)


def other_sizes(folder: Path) -> ServerConfig:
    save_linear(folder, features=12)
    return linear_config(folder)


def os_system(folder: Path) -> ServerConfig:
    save_linear(folder)
    kwargs = {"command": f"touch {folder / 'ran'}"}
    return linear_config(folder, architecture=Architecture(entrypoint="os:system", kwargs=kwargs))


def other_outputs(folder: Path) -> ServerConfig:
    from testkit.models import vector_signature

    save_linear(folder, outputs=2)
    return linear_config(folder, outputs=2, signature=vector_signature(10, 3))


CASES: dict[Callable[[Path], ServerConfig], tuple[int, str, str, str]] = {
    no_receipt: (EXIT_RETRYABLE, "CheckpointNotFound", "receipt.json does not exist", "fetcher"),
    nested: (EXIT_PERMANENT, "CheckpointInvalid", "epoch", "spec.checkpoint.key: model_state_dict"),
    other_sizes: (EXIT_PERMANENT, "StateDictMismatch", "weight: expected [1, 10], found [1, 12]", "kwargs"),
    os_system: (EXIT_PERMANENT, "CodeExecutionNotAllowed", "os:system is neither", "Name the class"),
    other_outputs: (EXIT_PERMANENT, "WarmUpFailed", "declared shape [-1, 3], the module returned [1, 2]", "outputs"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, Failure | None, str, Path]]]:
    """Every case's exit code, failure, log and folder; two processes at a time."""

    folders = {make_config: tmp_path_factory.mktemp(make_config.__name__) for make_config in CASES}

    def run(make_config: Callable[[Path], ServerConfig]) -> tuple[str, tuple[int, Failure | None, str, Path]]:
        folder = folders[make_config]
        with RuntimeProcess(make_config(folder)) as server:
            code = server.wait_exit(90)
            return make_config.__name__, (code, server.failure(), server.log, folder)

    with ThreadPoolExecutor(2) as pool:
        yield dict(pool.map(run, CASES))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_failed_start_says_why_and_what_next(
    ended: dict[str, tuple[int, Failure | None, str, Path]], case: Callable[[Path], ServerConfig]
) -> None:
    code, reason, words, advice = CASES[case]
    got, failure, log, _ = ended[case.__name__]
    assert got == code, log
    assert failure is not None
    assert failure.reason == reason
    assert words in failure.message
    assert advice in failure.next_step
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["message"] == failure.message for line in lines)


def test_os_system_was_not_called(ended: dict[str, tuple[int, Failure | None, str, Path]]) -> None:
    assert not (ended["os_system"][3] / "ran").exists()


def test_no_configuration_is_a_permanent_failure(tmp_path: Path) -> None:
    with RuntimeProcess(linear_config(tmp_path), {"TORCHMODEL_SERVER_CONFIG": ""}) as server:
        assert server.wait_exit() == EXIT_PERMANENT
        failure = server.failure()
        assert failure is not None
        assert failure.reason == "ConfigInvalid"
        assert "TORCHMODEL_SERVER_CONFIG" in failure.next_step


def test_a_taken_port_may_be_free_later(tmp_path: Path) -> None:
    import socket

    with RuntimeProcess(linear_config(tmp_path), {"TORCHMODEL_SERVER_CONFIG": ""}) as unused:
        port = unused.port
    with socket.create_server(("127.0.0.1", port)) as taken:
        config = json.dumps(
            {
                "name": "m",
                "checkpointFolder": "/nowhere",
                "architecture": {"entrypoint": "a:B"},
                "host": "127.0.0.1",
                "port": taken.getsockname()[1],
            }
        )
        with RuntimeProcess(linear_config(tmp_path), {"TORCHMODEL_SERVER_CONFIG": config}) as server:
            assert server.wait_exit() == EXIT_RETRYABLE
            failure = server.failure()
            assert failure is not None
            assert "cannot listen" in failure.message


EXITING = """
import sys, torch

class Exiting(torch.nn.Linear):
    def __init__(self):
        super().__init__(10, 1)

    def forward(self, x):
        if (x[:, 0] == 666).any():
            sys.exit(7)
        return super().forward(x)
"""


def test_a_model_that_calls_sys_exit_fails_its_own_request_and_the_server_goes_on(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = linear_config(
        tmp_path,
        architecture=Architecture(entrypoint="model:Exiting"),
        code=CodeFile(inline=EXITING),
        security=Security(allow_code_execution=True),
        serving=Serving(processes=1, workers=1, threads=1),  # so small a model is computed on the event loop itself
    )
    with RuntimeProcess(config) as server:
        server.wait_ready()
        assert server.post("/v1/models/linear:predict", {"instances": [[666.0] * 10]})[0] == 500
        assert server.post("/v1/models/linear:predict", {"instances": [[1.0] * 10]})[0] == 200


MORTAL = """
import torch

class Mortal(torch.nn.Linear):
    # 666 is poison; 777 is the end, as a device-side assert is on a GPU
    dead = False
    def forward(self, x):
        self.dead = self.dead or bool((x[:, 0] == 777).any())
        if self.dead or (x[:, 0] == 666).any():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().forward(x)
"""


def test_a_model_that_fails_for_good_ends_its_process_so_that_another_is_started(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = linear_config(
        tmp_path,
        architecture=Architecture(entrypoint="nets:Mortal", kwargs={"in_features": 10, "out_features": 1}),
        code=CodeFile(inline=MORTAL),
        security=Security(allow_code_execution=True),
        serving=Serving(processes=1),
        drain_delay_seconds=30,
    )

    def ask(first: float) -> int:
        return server.post("/predictions/linear", [[first] + [0.5] * 9])[0]

    with RuntimeProcess(config) as server:
        server.wait_ready()
        assert [ask(first) for first in (1, 666, 1)] == [200, 500, 200]
        time.sleep(PULSE_INTERVAL_S)
        assert ask(777) == 500
        assert server.wait_exit() == EXIT_RETRYABLE
        failure = server.failure()
        assert failure is not None
        assert failure.reason == "ModelBroken"
        assert "the module fails on the row that it answered at warm-up" in server.log
