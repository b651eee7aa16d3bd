"""The serving process: `python -m torchmodel_runtime [--config FILE]`.

Reads the environment and the configuration once, opens the port, loads the model in the engine's thread, serves until
SIGTERM, drains. Exit codes: 0 drained, `config.EXIT_PERMANENT` the same start will fail again, `config.EXIT_RETRYABLE` it
may not, 1 anything else; a failed start leaves a `config.Failure` in the termination log.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import logging
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from torchmodel_runtime.circle import Circle, bury
from torchmodel_runtime.config import (
    CONFIG_INVALID,
    EXIT_RETRYABLE,
    MODEL_BROKEN,
    SERVER_CONFIG_VARIABLE,
    WARM_UP_FAILED,
    Failure,
    ServerConfig,
)
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.logs import configure_logs
from torchmodel_runtime.processes import (
    Handover,
    Membership,
    Siblings,
    read_handover,
    read_membership,
    watch_lifeline,
)
from torchmodel_runtime.quota import read_cpu_quota, whole_cpus
from torchmodel_runtime.termination import find_termination_log, write_termination_log

if TYPE_CHECKING:  # imported late: `prepare_libraries` comes before anything that imports numpy
    from torchmodel_runtime.ports.grpc_v2 import GrpcPort
    from torchmodel_runtime.ports.listener import Listener
    from torchmodel_runtime.server import Server
    from torchmodel_runtime.startup import LoadedModel, Room
    from torchmodel_runtime.workers import ThreadWorker, Worker

logger = logging.getLogger("torchmodel_runtime")


SWITCH_INTERVAL_S = 0.0005
"""How long a thread that runs Python, as Pillow's readers do, keeps the event loop waiting for the interpreter's lock. Python's
own 5 ms are many small requests long."""

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""mallopt(3); 4 GiB: practically never map, practically never give back."""


BROKEN = Failure(
    reason=MODEL_BROKEN,
    message="the model failed for good: after a request that it failed on, it failed on the row that it answered at warm-up too",
    next_step="The server's log has both tracebacks. After an error of a GPU only a new process helps, and one is started; "
    "if it comes again, look at what the request was.",
)


@dataclass(frozen=True)
class Environment:
    """What the process was started with, read once."""

    config_text: bytes
    termination_log: Path | None
    cpus: int
    """Whole CPUs that may be kept busy."""
    membership: Membership | None
    """None: nobody but this process is on the port yet."""


def read_environment(arguments: list[str]) -> Environment:
    """Arguments, environment and machine. Raises StartError when there is no configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m torchmodel_runtime", description="Serve one PyTorch model over HTTP."
    )
    parser.add_argument("--config", type=Path, help=f"ServerConfig as a JSON file; default: ${SERVER_CONFIG_VARIABLE}")
    options = parser.parse_args(arguments)
    text = b""
    try:
        text = options.config.read_bytes() if options.config else os.environ.get(SERVER_CONFIG_VARIABLE, "").encode()
    except OSError as error:
        logger.error("the configuration cannot be read: %s", error)
    return Environment(
        config_text=text,
        termination_log=find_termination_log(os.environ),
        cpus=whole_cpus(read_cpu_quota(), len(os.sched_getaffinity(0))),
        membership=read_membership(os.environ),
    )


def parse_config(text: bytes) -> ServerConfig:
    """The configuration, checked. Raises StartError CONFIG_INVALID with the field's path."""
    if not text.strip():
        raise StartError(
            CONFIG_INVALID,
            f"no configuration: neither --config nor ${SERVER_CONFIG_VARIABLE} is given",
            f"Set {SERVER_CONFIG_VARIABLE} to a ServerConfig as JSON (docs/runtime-contract.md).",
        )
    try:
        return msgspec.json.decode(text, type=ServerConfig)
    except msgspec.MsgspecError as error:
        raise StartError(
            CONFIG_INVALID,
            f"the ServerConfig is not valid: {error}",
            "Operator and runtime image may be of different versions; otherwise correct the field that is named.",
        ) from None


def prepare_libraries(threads: int) -> None:
    """Settings that numeric libraries read from the environment when they are first imported."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",  # device plug-ins nobody asked for cost a tenth of a second
        TORCH_FORCE_WEIGHTS_ONLY_LOAD="1",  # wins over any package that asks torch.load for more
        GRPC_VERBOSITY="NONE",  # its core logs text of its own; what matters comes back as an error
        HF_HUB_OFFLINE="1",  # a server loads what was fetched and verified, nothing else
    )


async def serve(environment: Environment, config: ServerConfig) -> int:
    """Open the port, load, serve until SIGTERM or SIGINT, drain; the exit code. Raises StartError.

    A process that joins others on the port opens it last, when it is ready.
    """
    from torchmodel_runtime.metrics import add_up
    from torchmodel_runtime.ports.listener import Listener
    from torchmodel_runtime.ports.rest import RestPort
    from torchmodel_runtime.server import Server
    from torchmodel_runtime.workers import ThreadWorker

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="torchmodel-") as folder:
        membership = environment.membership or Membership(Path(folder), 0)
        handover = None if membership.is_first else read_handover(membership.folder)
        if handover is None and not membership.is_first:
            logger.info("stopped", extra={"fields": {"reason": "the first process on this port is gone"}})
            return 0
        server = Server(config)
        circle = Circle(membership, server.metrics.snapshot)
        listener = Listener(server, RestPort(server, circle.ask))
        grpc_port = _make_grpc_port(server)
        if membership.is_first:
            await _listen(listener, config.host, config.port)
            if grpc_port is not None:
                await _listen(grpc_port, config.host, config.grpc_port)
        else:
            lifeline = asyncio.create_task(watch_lifeline(stop))  # noqa: F841, RUF006 - lives as long as this name does
        worker = ThreadWorker(loop)
        loading = asyncio.create_task(_load(config, _find_room(environment, handover), worker))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        siblings: Siblings | None = None
        if loading.done() and (loading.exception() is not None or not stop.is_set()):
            model = _take_over(loading.result(), handover)
            server.serve(model, await _make_workers(model, worker, loop), on_broken=stop.set)
            if model.plan.processes > 1:
                await circle.join()
            if not membership.is_first:
                await listener.open(shared=True)
                if grpc_port is not None:
                    await grpc_port.open(shared=True)
            elif model.plan.processes > 1:
                siblings = Siblings(
                    membership.folder,
                    environment.config_text,
                    Handover(plan=model.plan, report=model.report),
                    functools.partial(bury, membership.folder, add_up),
                )
                siblings.start(model.plan.processes - 1)
            logger.info(
                "ready", extra={"fields": {"report": msgspec.to_builtins(model.report), "process": membership.index}}
            )
            await stop.wait()
        logger.info("draining")
        if siblings is not None:
            siblings.terminate()
        await server.withdraw()
        drained = await server.drain(grpc_port.close() if grpc_port is not None else None)
        await listener.close()
        await circle.leave()
        if siblings is not None:
            drained = await siblings.wait(config.serving.drain_timeout_seconds) and drained
        logger.info("stopped", extra={"fields": {"drained": drained}})
        if server.is_broken:
            write_termination_log(BROKEN, environment.termination_log)
            return EXIT_RETRYABLE
        return 0 if drained else 1


def _find_room(environment: Environment, handover: Handover | None) -> Room:
    """What this process may use; a sibling takes the first one's plan."""
    from torchmodel_runtime.startup import Room

    return Room(cpus=environment.cpus, plan=handover.plan if handover is not None else None)


def _take_over(model: LoadedModel, handover: Handover | None) -> LoadedModel:
    """The first process' report, so that all processes of the port say the same."""
    return model if handover is None else dataclasses.replace(model, report=handover.report)


async def _make_workers(model: LoadedModel, worker: ThreadWorker, loop: asyncio.AbstractEventLoop) -> list[Worker]:
    """One worker for each runner, torch's settings made in its thread; the one that loaded is the first."""
    from torchmodel_runtime.workers import InlineWorker, ThreadWorker

    threads = [worker, *(ThreadWorker(loop) for _ in model.runners[1:])]
    for thread in threads:
        await thread.call(model.prepare_thread)
        if model.rules.depth > 1:
            thread.add_thread()
    if not model.plan.inline:
        return list(threads)
    model.prepare_thread()
    return [InlineWorker(worker, model.quick_bytes)]


def _make_grpc_port(server: Server) -> GrpcPort | None:
    """The gRPC port where serving.grpc.enabled asks for one. Raises StartError where the image has no gRPC."""
    if not server.config.serving.grpc.enabled:
        return None
    try:
        from torchmodel_runtime.ports.grpc_v2 import GrpcPort
    except ImportError as error:
        raise StartError(
            CONFIG_INVALID,
            f"serving.grpc.enabled is true, but gRPC cannot be served here: {error}",
            "Install torchmodel-operator[runtime,grpc] in the image, or leave serving.grpc.enabled false.",
        ) from error
    return GrpcPort(server)


async def _listen(port: Listener | GrpcPort, host: str, number: int) -> None:
    try:
        await port.open(shared=False)
    except OSError as error:
        raise StartError(
            CONFIG_INVALID,
            f"cannot listen on {host}:{number}: {error.strerror or error}",
            "Another process has the port, or the address is not of this machine.",
            EXIT_RETRYABLE,
        ) from error


async def _load(config: ServerConfig, room: Room, worker: ThreadWorker) -> LoadedModel:
    """The model, or StartError; in the engine's thread, within serving.startupTimeoutSeconds."""
    from torchmodel_runtime.startup import start_model, unexpected

    stages: list[str] = []
    limit_s = config.serving.startup_timeout_seconds
    try:
        return await asyncio.wait_for(worker.call(functools.partial(start_model, config, room, stages.append)), limit_s)
    except StartError:
        raise
    except asyncio.TimeoutError:
        raise StartError(
            WARM_UP_FAILED,
            f"not ready after {limit_s} s (serving.startupTimeoutSeconds), during {stages[-1] if stages else 'the start'}",
            "Raise spec.serving.startupTimeoutSeconds, or give the pod more CPU.",
            EXIT_RETRYABLE,
        ) from None
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            raise
        raise unexpected(error) from error


def report_failure(error: StartError, termination_log: Path | None) -> None:
    """Tell the operator (termination log) and the reader (log) why the start failed."""
    logger.error("the start failed", exc_info=error.__cause__, extra={"fields": msgspec.to_builtins(error.failure)})
    write_termination_log(error.failure, termination_log)


def prepare_allocator() -> None:
    """Start this program again with glibc's allocator told to keep its pages, unless it was started so.

    By default every tensor over 128 KiB is mapped and unmapped afresh, page faults included: keeping the pages gave 1.1 to 1.6
    times the batches of convolutions and encoders (docs/performance.md). glibc reads these variables once, at its own start.
    """
    if all(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update({name: value for name, value in ALLOCATOR.items() if name not in os.environ})
    os.execv(sys.executable, [sys.executable, "-m", "torchmodel_runtime", *sys.argv[1:]])  # noqa: S606 - this very program


def main() -> int:
    """Run the process; the exit code."""
    prepare_allocator()
    configure_logs("")
    environment = read_environment(sys.argv[1:])
    try:
        config = parse_config(environment.config_text)
        configure_logs(config.name)
        prepare_libraries(environment.cpus)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        import uvloop

        return uvloop.run(serve(environment, config))
    except StartError as error:
        report_failure(error, environment.termination_log)
        return error.exit_code
    except Exception:
        logger.exception("the server failed")
        return 1


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # not sys.exit: the engine's thread may be inside torch, and a finalised interpreter under it crashes
    os._exit(code)
