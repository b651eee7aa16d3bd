"""The serving process: `python -m torchmodel_runtime [--config FILE]`.

Reads the environment and the configuration once, opens the port, loads the model in the engine's thread, serves until
SIGTERM, drains. Exit codes: 0 drained, `config.EXIT_PERMANENT` the same start will fail again, `config.EXIT_RETRYABLE` it
may not, 1 anything else; a failed start leaves a `config.Failure` in the termination log.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from torchmodel_runtime.config import (
    CONFIG_INVALID,
    EXIT_RETRYABLE,
    SERVER_CONFIG_VARIABLE,
    WARM_UP_FAILED,
    ServerConfig,
)
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.logs import configure_logs
from torchmodel_runtime.quota import choose_threads, read_cpu_quota
from torchmodel_runtime.termination import find_termination_log, write_termination_log

if TYPE_CHECKING:  # imported late: `prepare_libraries` comes before anything that imports numpy
    from aiohttp import web

    from torchmodel_runtime.batcher import Worker
    from torchmodel_runtime.startup import LoadedModel

logger = logging.getLogger("torchmodel_runtime")


@dataclass(frozen=True)
class Environment:
    """What the process was started with, read once."""

    config_text: bytes
    termination_log: Path | None
    threads_available: int
    cpu_quota: float | None


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
        threads_available=len(os.sched_getaffinity(0)),
        cpu_quota=read_cpu_quota(),
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
        HF_HUB_OFFLINE="1",  # a server loads what was fetched and verified, nothing else
    )


async def serve(config: ServerConfig, threads: int) -> int:
    """Open the port, load, serve until SIGTERM or SIGINT, drain; the exit code. Raises StartError."""
    from aiohttp import web

    from torchmodel_runtime.batcher import Worker
    from torchmodel_runtime.ports.rest import RestPort
    from torchmodel_runtime.server import Server

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(config)
    # cancellation: a client that leaves takes its request out of the queue; shutdown_timeout: drain has waited already
    runner = web.AppRunner(
        RestPort(server).make_app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    await _listen(web.TCPSite(runner, config.host, config.port, backlog=1024), config)
    worker = Worker(loop)
    loading = asyncio.create_task(_load(config, threads, worker))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        model = loading.result()
        server.serve(model, [worker, *(Worker(loop) for _ in model.runners[1:])])
        logger.info("ready", extra={"fields": {"report": msgspec.to_builtins(model.report), "threads": threads}})
        await stop.wait()
    logger.info("draining")
    drained = await server.drain()
    await runner.cleanup()
    logger.info("stopped", extra={"fields": {"drained": drained}})
    return 0 if drained else 1


async def _listen(site: web.TCPSite, config: ServerConfig) -> None:
    try:
        await site.start()
    except OSError as error:
        raise StartError(
            CONFIG_INVALID,
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}",
            "Another process has the port, or the address is not of this machine.",
            EXIT_RETRYABLE,
        ) from error


async def _load(config: ServerConfig, threads: int, worker: Worker) -> LoadedModel:
    """The model, or StartError; in the engine's thread, within serving.startupTimeoutSeconds."""
    from torchmodel_runtime.startup import start_model, unexpected

    stages: list[str] = []
    limit_s = config.serving.startup_timeout_seconds
    try:
        return await asyncio.wait_for(
            worker.call(functools.partial(start_model, config, threads, stages.append)), limit_s
        )
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


def main() -> int:
    """Run the process; the exit code."""
    configure_logs("")
    environment = read_environment(sys.argv[1:])
    try:
        config = parse_config(environment.config_text)
        configure_logs(config.name)
        threads = choose_threads(config.serving.threads, environment.cpu_quota, environment.threads_available)
        prepare_libraries(threads)
        import uvloop

        return uvloop.run(serve(config, threads))
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
