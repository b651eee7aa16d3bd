"""From a configuration to a model that is loaded, warm and proven: the list of steps, and where their time went.

`__main__` runs `start_model` in the engine's thread while the port already answers health checks. Everything slow (torch,
the architecture's package) is imported here and not before.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchmodel_runtime import artifacts
from torchmodel_runtime.batcher import Runner
from torchmodel_runtime.batching import BatchRules
from torchmodel_runtime.config import INTERNAL_ERROR, ColdStart, ModelReport, ServerConfig
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks import Task, make_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """What the server serves."""

    runners: list[Runner]
    """One for each worker thread; they share the weights."""
    task: Task
    report: ModelReport
    rules: BatchRules


def start_model(config: ServerConfig, threads: int, on_stage: Callable[[str], None]) -> LoadedModel:
    """Load, warm up and prove the configured model. Raises StartError; on_stage hears what is being done."""
    gc.disable()  # collections while torch is imported cost a seventh of its time and find nothing
    try:
        return _start(config, threads, _StageClock(on_stage))
    finally:
        gc.enable()
        gc.freeze()  # what is alive now lives on: later collections need not look at it


def _start(config: ServerConfig, threads: int, clock: _StageClock) -> LoadedModel:
    clock.begin("load")
    checkpoint = artifacts.locate(Path(config.checkpoint_folder), config.checkpoint_format)
    task = make_task(config.task, config.signature, checkpoint.folder)

    clock.begin("import")
    from torchmodel_runtime.engine import architecture, forward, proof, weights

    forward.configure_thread(threads)
    device = forward.choose_device(config.serving.device)
    build = architecture.resolve(
        config.architecture, config.code, checkpoint.folder, config.security.allow_code_execution
    )

    clock.begin("load")
    try:
        state = weights.read_state_dict(checkpoint, config.checkpoint_key)
        module = weights.load_module(build, state).to(device)
        engine = forward.Engine(module, device, task.call, config.serving.batching.max_size)

        clock.begin("warm-up")
        batching = proof.warm_up(engine, task, config.serving.batching.max_size)
    except StartError:
        raise
    except Exception as error:
        if forward.is_out_of_memory(error):
            raise forward.out_of_memory(clock.stage, error) from error
        raise
    clock.end()

    report = ModelReport(
        sha256=checkpoint.receipt.sha256,
        uri=checkpoint.receipt.uri,
        size_bytes=checkpoint.receipt.size_bytes,
        format=checkpoint.format,
        load_safety="code" if config.code is not None else "weights-only",
        device=device.type,
        cold_start=ColdStart(
            fetch_seconds=round(checkpoint.receipt.fetch_seconds, 3),
            import_seconds=round(clock.seconds["import"], 3),
            load_seconds=round(clock.seconds["load"], 3),
            warm_up_seconds=round(clock.seconds["warm-up"], 3),
        ),
        batching=batching,
    )
    return LoadedModel([engine], task, report, BatchRules(engine.max_rows))


def unexpected(error: BaseException) -> StartError:
    """Whatever `start_model` did not foresee; the log has the traceback."""
    return StartError(
        INTERNAL_ERROR,
        f"the start failed: {type(error).__name__}: {error}",
        "The server's log has the traceback. If it points into torchmodel_runtime, please report it.",
    )


class _StageClock:
    """Adds up the seconds of each named stage."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self._on_stage = on_stage
        self._since_s = time.monotonic()
        self.stage = ""
        self.seconds: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        """The stage before ends."""
        self.end()
        self.stage = stage
        self._on_stage(stage)

    def end(self) -> None:
        now_s = time.monotonic()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now_s - self._since_s
        self._since_s = now_s
