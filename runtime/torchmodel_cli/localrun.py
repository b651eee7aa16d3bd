"""`torchmodel run`: a manifest served on this machine by the fetcher and the runtime that a cluster uses.

Top to bottom: check the manifest, make both documents, fetch, start the server as a child, say where it answers, and stay
until it ends or Ctrl-C asks it to drain. Decisions are in `localconfig`; this module reads and writes the world.
Standard output holds only what was asked for (`--once`); everything else goes to standard error.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from torchmodel_operator.errors import SpecError
from torchmodel_operator.spec import Model
from torchmodel_runtime.config import (
    EXIT_PERMANENT,
    EXIT_RETRYABLE,
    GRPC_PORT,
    HTTP_PORT,
    FetchConfig,
    ModelReport,
    ServerConfig,
)
from torchmodel_runtime.fetch import FetchError, FetchSettings, Progress, fetch

from torchmodel_cli.bodies import BadUse
from torchmodel_cli.child import ServerProcess
from torchmodel_cli.client import Endpoint, ServerError, fetch_metadata, is_ready
from torchmodel_cli.display import StatusLine, format_download, format_failure, format_ledger, format_size
from torchmodel_cli.documents import LocatedDocument
from torchmodel_cli.localconfig import (
    LocalError,
    LocalOptions,
    fields_without_effect,
    find_code,
    local_module,
    make_local_fetch_config,
    make_local_server_config,
    parse_local_model,
    select_model,
)
from torchmodel_cli.prediction import ask
from torchmodel_cli.recipes import SUFFIXES, make_recipe
from torchmodel_cli.running import cache_folder, note_running
from torchmodel_cli.validation import check_file, format_problem

POLL_S = 0.1
"""Between two looks at a server that starts; a load takes seconds."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class RunOptions:
    """The command line of `torchmodel run`."""

    manifest: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = HTTP_PORT
    grpc_port: int | None = None
    """None: `GRPC_PORT`, where the manifest enables gRPC."""
    checkpoint: str | None = None
    cache: Path | None = None
    credentials: Path | None = None
    once: str | None = None
    is_verbose: bool = False


def run(options: RunOptions) -> int:
    """Serve until the server ends. Returns the exit code: the server's or fetcher's own where one of them ended it."""
    checked = check_file(options.manifest)
    if checked.problems:
        for problem in checked.problems:
            say(format_problem(options.manifest, problem))
        return EXIT_PERMANENT
    with tempfile.TemporaryDirectory(prefix="torchmodel-") as state:
        try:
            document = select_model(checked.models, options.name)
            fetch_config, server_config = make_documents(document, checked.documents, options, Path(state))
            describe(document, fetch_config, options)
            fetch_here(fetch_config)
            return serve_here(server_config, options, Path(state))
        except (LocalError, SpecError) as error:
            say(f"torchmodel run: {error}")
            return EXIT_PERMANENT
        except FetchError as error:
            say(format_failure(error.to_failure()))
            return EXIT_RETRYABLE if error.retryable else EXIT_PERMANENT


def make_documents(
    document: LocatedDocument, documents: list[LocatedDocument], options: RunOptions, state: Path
) -> tuple[FetchConfig, ServerConfig]:
    """What the fetcher and the server are told. Raises LocalError, SpecError."""
    model = parse_local_model(document)
    port = free_port(options.host, options.port)
    local = LocalOptions(
        folder=options.manifest.resolve().parent,
        state=state,
        cache=(options.cache or cache_folder() / "checkpoints").resolve(),
        host=options.host,
        port=port,
        grpc_port=free_grpc_port(model, options, port),
        checkpoint=options.checkpoint,
        credentials=options.credentials.resolve() if options.credentials else None,
    )
    code = find_code(model.spec, documents)
    return make_local_fetch_config(model, local), make_local_server_config(model, local, code)


def free_grpc_port(model: Model, options: RunOptions, http_port: int) -> int:
    """The port for gRPC, where the manifest enables it. Raises LocalError when it is taken, or given without effect."""
    if not model.spec.serving.grpc.enabled:
        if options.grpc_port is not None:
            raise LocalError("--grpc-port has no effect without spec.serving.grpc.enabled: true in the manifest")
        return GRPC_PORT
    port = GRPC_PORT if options.grpc_port is None else options.grpc_port
    if port == http_port:
        raise LocalError(f"--port and --grpc-port are both {port}; HTTP and gRPC need a port each (0 is any)")
    return free_port(options.host, port, "--grpc-port")


def free_port(host: str, port: int, option: str = "--port") -> int:
    """The port, or any free one for 0. Raises LocalError when it is taken, before anything is fetched or loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = error.strerror or str(error)
        raise LocalError(f"cannot serve on {host}:{port}: {reason}; choose another with {option} (0 is any)") from None


def describe(document: LocatedDocument, fetch_config: FetchConfig, options: RunOptions) -> None:
    """Say what is about to happen, and what of the manifest has no effect on this machine."""
    say(f"{document.name}: {fetch_config.uri}")
    ignored = fields_without_effect(document)
    if ignored:
        say(f"no effect on this machine: {', '.join(ignored)}")
    entrypoint = document.data["spec"]["architecture"]["entrypoint"]
    has_source = "source" in document.data["spec"]["architecture"]
    file = None if has_source else local_module(entrypoint, options.manifest.resolve().parent)
    if file:
        say(f"using {file} beside the manifest; on a cluster it must be in spec.image or spec.architecture.source")


def fetch_here(config: FetchConfig) -> None:
    """Fetch and verify, with progress. Raises FetchError."""
    status = StatusLine()
    settings = FetchSettings(progress_interval_s=0.1)

    def show(progress: Progress) -> None:
        status.show(format_download(progress.bytes_done, progress.bytes_total, progress.megabytes_per_second))

    try:
        receipt = asyncio.run(fetch(config, show, environment=os.environ, settings=settings))
    finally:
        status.end()
    how = "verified" if config.sha256 else "not pinned by spec.checkpoint.sha256"
    where = ", from the cache" if receipt.cached else ""
    size = format_size(receipt.size_bytes)
    say(f"fetched {size} in {receipt.fetch_seconds:.2f} s{where}, sha256 {receipt.sha256} ({how})")


def serve_here(config: ServerConfig, options: RunOptions, state: Path) -> int:
    """Start the server, say where it answers, and stay until it ends. Returns its exit code."""
    endpoint = Endpoint(f"http://{reachable_host(config)}:{config.port}", config.name)
    server = ServerProcess(config, options.manifest.resolve().parent, state, options.is_verbose)
    with draining_on_signals(server):
        try:
            wait_ready(server, endpoint, config)
            if server.poll() is None:
                return stay(server, endpoint, config, options)
            return explain_end(server)
        finally:
            server.kill()


def reachable_host(config: ServerConfig) -> str:
    """The host as a client on this machine writes it in an address."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "") else config.host
    return f"[{host}]" if ":" in host else host


def wait_ready(server: ServerProcess, endpoint: Endpoint, config: ServerConfig) -> None:
    """Return when the server takes requests or has ended."""
    status, started_s = StatusLine(), time.monotonic()
    while server.poll() is None and not is_ready(endpoint.base):
        status.show(f"loading and warming up {config.name}: {time.monotonic() - started_s:.0f} s")
        server.wait(POLL_S)
    status.end()


def stay(server: ServerProcess, endpoint: Endpoint, config: ServerConfig, options: RunOptions) -> int:
    """The model serves: show what and where, ask once if that was wanted, wait for the end."""
    try:
        report = msgspec.convert(fetch_metadata(endpoint)["parameters"], ModelReport)
    except ServerError:
        return explain_end(server)  # a signal came in between
    for line in format_ledger(report):
        say(f"  {line}")
    if options.once is not None:
        return answer_once(server, endpoint, options.once)
    say(f"\nserving at {endpoint.base}")
    say(f"gRPC at {reachable_host(config)}:{config.grpc_port}\n" if config.serving.grpc.enabled else "")
    for line in make_recipe(config, endpoint.base, find_sample(config, options.manifest.parent)):
        say(f"  {line}")
    say("\nCtrl-C ends it")
    note = note_running(config.name, endpoint.base)
    try:
        return explain_end(server)
    finally:
        note.unlink(missing_ok=True)


def find_sample(config: ServerConfig, folder: Path) -> str | None:
    """A medium beside the manifest that the model could be asked with, so that the recipe can be pasted as it is."""
    suffixes = SUFFIXES.get(config.task.type, ())
    return next((str(file) for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes), None)


def answer_once(server: ServerProcess, endpoint: Endpoint, given: str) -> int:
    """Ask, print the answer on standard output, drain. Returns the exit code as `predict` does."""
    code = 0
    try:
        print(ask(endpoint, given), flush=True)
    except (BadUse, ServerError) as error:
        say(f"torchmodel run: {error}")
        code = 2 if isinstance(error, BadUse) else 1
    server.drain()
    return code or explain_end(server)


def explain_end(server: ServerProcess) -> int:
    """Wait for the server to end, say why if it was not asked to. Returns its exit code."""
    code = server.wait()
    if code == 0:
        return 0
    failure = server.failure()
    if failure is not None:
        say(format_failure(failure))
    else:
        say(f"the server ended with {describe_code(code)}; the end of its log:")
        for line in server.last_lines():
            say(f"  {line}")
    return code if code is not None and code > 0 else 1


def describe_code(code: int | None) -> str:
    """`exit code 1`, or the signal that ended it."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name} (out of memory is the usual cause)" if name == "SIGKILL" else name
    return f"exit code {code}"


@contextmanager
def draining_on_signals(server: ServerProcess) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the server to drain; a second one ends it at once."""
    asked = False

    def on_signal(*_: Any) -> None:
        nonlocal asked
        if asked:
            server.kill()
            return
        asked = True
        say("\nending: requests in flight are finished first; Ctrl-C again ends at once")
        server.drain()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line for the person, on standard error."""
    print(text, file=sys.stderr, flush=True)
