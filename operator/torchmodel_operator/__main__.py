"""The operator process: reads the environment once, puts the parts together, and ends when any of them does.

Exit code 0 after SIGTERM; 1 when the lease was lost, a watch broke for good, or the cluster lacks the CRD or a right; 2
when a setting is wrong. Kubernetes starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import web

from torchmodel_operator.errors import KubeError
from torchmodel_operator.handlers import Desk, watch, work
from torchmodel_operator.jsonlines import set_up_logging
from torchmodel_operator.kube import WATCHED, AioKube, connect
from torchmodel_operator.lease import Elector
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.names import LEASE
from torchmodel_operator.observed import Key
from torchmodel_operator.probes import Vitals, make_app
from torchmodel_operator.reconcile import World
from torchmodel_operator.recorder import Recorder
from torchmodel_operator.report import HttpReports
from torchmodel_operator.resync import Resync
from torchmodel_operator.settings import OperatorSettings, SettingsError, parse_settings
from torchmodel_operator.workqueue import WorkQueue

FINISH_S = 10.0
"""How long rounds under way may take to end after SIGTERM."""

log = logging.getLogger(__name__)


class Operator:
    """All parts of one operator process."""

    def __init__(self, settings: OperatorSettings, kube: AioKube, session: aiohttp.ClientSession) -> None:
        self.settings, self.kube = settings, kube
        clock = time.monotonic
        self.ledger = Ledger()
        self.queue: WorkQueue[Key] = WorkQueue(jitter=lambda: random.uniform(0.8, 1.2))  # noqa: S311  spreads load
        self.vitals = Vitals(clock, [resource.plural for resource in WATCHED])
        self.resync = Resync(self.kube, self.ledger, settings.namespaces, self.queue.add, clock)
        recorder = Recorder(self.kube, settings.pod_name, clock)
        self.world = World(self.kube, self.ledger, HttpReports(session, clock), recorder, settings, time.time)
        identity = f"{settings.pod_name}_{secrets.token_hex(4)}"
        self.elector = Elector(self.kube, settings.lease_namespace, LEASE, identity, clock, time.time)
        self.leading, self.stopping, self.kopf_stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """Work until something ends it; returns the exit code. Every task starts before kopf, which ends all later ones."""
        await self.resync.fill()
        self.vitals.is_filled = True
        started = asyncio.Event()
        workers = [
            asyncio.create_task(work(self.world, self.queue, self.vitals, self.leading))
            for _ in range(self.settings.workers)
        ]
        election = asyncio.create_task(self.elector.run(self.leading))
        signalled = asyncio.create_task(self._await_signal(started))
        sweeping = asyncio.create_task(self.resync.run())
        desk = Desk(self.ledger, self.queue, self._make_session, self.kube.host)
        watching = asyncio.create_task(watch(desk, self.settings.namespaces, self.kopf_stop, started))
        ends: set[asyncio.Task[None]] = {election, signalled, watching, sweeping}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        code = 0 if signalled in done else 1
        for task in done:
            if (error := task.exception()) is not None:
                log.error("ended by an error", exc_info=error)
        await self._finish(workers, FINISH_S if code == 0 else 0.0)
        election.cancel()
        await asyncio.gather(election, return_exceptions=True)
        await self.elector.release()
        self.kopf_stop.set()
        await asyncio.wait([watching], timeout=FINISH_S)
        return code

    def measure(self) -> Mapping[str, float]:
        """The metrics."""
        calls = {f'api_calls_total{{method="{m}",resource="{r}"}}': float(n) for (m, r), n in self.kube.calls.items()}
        rounds = {f'reconciles_total{{outcome="{outcome}"}}': float(n) for outcome, n in self.vitals.reconciles.items()}
        leading = float(self.elector.is_leading)
        return {**calls, **rounds, "queue_depth": len(self.queue), "objects": len(self.ledger), "leading": leading}

    async def _await_signal(self, started: asyncio.Event) -> None:
        """Return on SIGTERM or SIGINT. kopf sets handlers of its own as it starts, so ours are set again after that."""
        self._catch_signals()
        await started.wait()
        self._catch_signals()
        await self.stopping.wait()

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stopping.set)

    async def _finish(self, workers: list[asyncio.Task[None]], patience_s: float) -> None:
        """Let the rounds under way end, start no more. Without the lease there is no patience: another replica writes."""
        self.leading.clear()
        deadline = time.monotonic() + patience_s
        while self.queue.is_processing and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(0.05)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _make_session(self) -> aiohttp.ClientSession:
        """A session for kopf: our TLS and the newest token on each request; it also tells of each list and watch."""

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            if authorization := await self.kube.authorization():
                request.headers["Authorization"] = authorization
            if request.method == "GET":
                plural, is_watch = request.url.name, "watch" in request.url.query
                self.vitals.note_request(plural, is_watch)
                if not is_watch:
                    self.resync.note_relist(plural)
            return await handler(request)

        connector = aiohttp.TCPConnector(limit=0, ssl=self.kube.ssl_context)
        return aiohttp.ClientSession(connector=connector, middlewares=(authorize,), trust_env=True)


async def run(settings: OperatorSettings, kubeconfig: str) -> int:
    """Run the operator; returns the exit code."""
    try:
        kube = await connect(kubeconfig, settings.kube_qps, time.monotonic)
        async with aiohttp.ClientSession() as session:
            operator = Operator(settings, kube, session)
            runner = web.AppRunner(make_app(operator.vitals, operator.measure), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, port=settings.probe_port).start()
            try:
                return await operator.run()
            finally:
                await runner.cleanup()
                await operator.kube.close()
    except KubeError as error:
        log.error("cannot start: %s", error.message)
        return 1


def find_kubeconfig(environ: Mapping[str, str]) -> str:
    """The kubeconfig to use: KUBECONFIG, else none inside a pod, else the usual one of the user."""
    if environ.get("KUBECONFIG") or environ.get("KUBERNETES_SERVICE_HOST"):
        return environ.get("KUBECONFIG", "")
    return str(Path("~/.kube/config").expanduser())


def main() -> None:
    """Read the environment and run."""
    environ = dict(os.environ)
    try:
        settings = parse_settings(environ)
    except SettingsError as error:
        sys.stderr.write(f"torchmodel-operator: {error}\n")
        sys.exit(2)
    set_up_logging(settings.log_level)
    sys.exit(asyncio.run(run(settings, find_kubeconfig(environ))))


if __name__ == "__main__":
    main()
