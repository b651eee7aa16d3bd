"""From a configuration to a model that is loaded, warm and proven: the list of steps, and where their time went.

`__main__` runs `start_model` in the engine's thread while the port already answers health checks. Everything slow (torch,
the architecture's package) is imported here and not before.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchmodel_runtime import artifacts
from torchmodel_runtime.batcher import Runner
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.bytebudget import choose_max_bytes
from torchmodel_runtime.config import INTERNAL_ERROR, ColdStart, ModelReport, ParallelismReport, ServerConfig
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.parallelism import Plan, Timing, choose_plan, limit_size, thread_counts, with_one_worker
from torchmodel_runtime.quota import read_memory_room, read_resident_bytes
from torchmodel_runtime.tasks import Task, make_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """What the server serves."""

    runners: Sequence[Runner]
    """One for each worker thread; they share the weights."""
    task: Task
    report: ModelReport
    rules: BatchRules
    plan: Plan
    quick_bytes: int
    """Of the inputs of the largest batch that warm-up computed, from which the plan follows."""
    media_threads: int
    """That decode media at the same time."""
    max_bytes_in_flight: int
    """That requests hold in this process (`bytebudget`)."""
    prepare_thread: Callable[[], None]
    """torch's settings for the calling thread: to be called first in a thread that will run a runner."""


@dataclass(frozen=True)
class Room:
    """What this process may use."""

    cpus: int
    """Whole CPUs of the quota."""
    plan: Plan | None = None
    """Decided already, by the first process on this port."""


def start_model(config: ServerConfig, room: Room, on_stage: Callable[[str], None]) -> LoadedModel:
    """Load, warm up and prove the configured model. Raises StartError; on_stage hears what is being done."""
    gc.disable()  # collections while torch is imported cost a seventh of its time and find nothing
    try:
        return _start(config, room, _StageClock(on_stage))
    finally:
        gc.enable()
        gc.freeze()  # what is alive now lives on: later collections need not look at it
        ctypes.CDLL(None).malloc_trim(0)  # the proofs' memory, which the allocator was told to keep


def _start(config: ServerConfig, room: Room, clock: _StageClock) -> LoadedModel:
    clock.begin("load")
    checkpoint = artifacts.locate(Path(config.checkpoint_folder), config.checkpoint_format)
    task = make_task(config.task, config.signature, checkpoint.folder, config.serving.batching.padding)

    clock.begin("import")
    from torchmodel_runtime.engine import (
        architecture,
        devices,
        forward,
        memory,
        proof,
        replicas,
        threads,
        timing,
        weights,
    )

    devices.configure_thread(room.cpus)
    device = devices.choose_device(config.serving.device)
    build = architecture.resolve(
        config.architecture, config.code, checkpoint.folder, config.security.allow_code_execution
    )

    clock.begin("load")
    try:
        state = weights.read_state_dict(checkpoint, config.checkpoint_key)
        module = weights.load_module(build, state).to(device)
        engine = forward.Engine(module, device, task.call, config.serving.batching.max_size)

        clock.begin("warm-up")
        proof.check_answers(engine, task)
        measured = timing.measure(engine, task, _thread_counts(config, room))
        max_size, why = limit_size(config.serving.batching.max_size, measured, is_gpu=engine.device.type != "cpu")
        batching = proof.prove_batches(engine, task, max_size, why)
        plan = room.plan or _choose_plan(config, room, engine.device.type != "cpu", measured)
        engines, doubt = replicas.make_replicas(engine, plan.workers, task, plan.threads)
        if doubt:
            plan = with_one_worker(plan, doubt)
        engine.bounds.max_bytes = memory.max_batch_bytes(
            memory.room_bytes(device), engine.bounds.growth_per_byte, plan.processes * plan.workers
        )
    except StartError:
        raise
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise devices.out_of_memory(clock.stage, error) from error
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
        parallelism=ParallelismReport(
            processes=plan.processes, workers=plan.workers, threads=plan.threads, reason=plan.reason
        ),
    )
    return LoadedModel(
        runners=threads.share_threads(engines, plan.threads, plan.solo_threads),
        task=task,
        report=report,
        rules=BatchRules(
            engine.max_rows,
            sizes=engine.bounds.sizes,
            padded_inputs=task.call.padding.inputs if engine.pads and task.call.padding else (),
            max_batch_bytes=engine.bounds.max_bytes,
            depth=1 if device.type == "cpu" else 2,
        ),
        plan=plan,
        quick_bytes=engine.max_rows * engine.bounds.usual_row_bytes,
        media_threads=max(1, room.cpus // plan.processes),
        max_bytes_in_flight=choose_max_bytes(
            config.serving.limits.max_bytes_in_flight, read_memory_room(), plan.processes, _largest_body(config)
        ),
        prepare_thread=functools.partial(devices.configure_thread, plan.solo_threads),
    )


def _largest_body(config: ServerConfig) -> int:
    grpc = config.serving.grpc
    return max(config.serving.max_request_bytes, grpc.max_message_bytes if grpc.enabled else 0)


def _thread_counts(config: ServerConfig, room: Room) -> list[int]:
    """The numbers of torch threads to measure."""
    return sorted({1, config.serving.threads}) if config.serving.threads else thread_counts(room.cpus)


def _choose_plan(config: ServerConfig, room: Room, is_gpu: bool, measured: Timing) -> Plan:
    """Spend the quota by what was measured, as far as memory goes."""
    # half of what is left stays for the activations
    max_processes = 1 + read_memory_room() // (2 * read_resident_bytes())
    return choose_plan(config.serving, room.cpus, measured, is_gpu=is_gpu, max_processes=max_processes)


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
