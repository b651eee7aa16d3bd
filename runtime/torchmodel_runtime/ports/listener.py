"""The HTTP socket: opens it, makes a connection of each client, closes in order. Made by `__main__`.

Several processes may listen on the one port; the kernel spreads connections over them (SO_REUSEPORT, socket(7)).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiohttp import web

from torchmodel_runtime.ports.heads import Heads
from torchmodel_runtime.ports.hotroute import HotConnection, hot_routes
from torchmodel_runtime.ports.rest import RestPort
from torchmodel_runtime.server import Server

BACKLOG = 1024
"""Connections that the kernel keeps while the event loop is busy; Linux cuts it to net.core.somaxconn (4096)."""


class Listener:
    """The HTTP port of one process."""

    def __init__(self, server: Server, rest: RestPort) -> None:
        self._server = server
        # cancellation: a client that leaves takes its request out of the queue; shutdown_timeout: drain has waited already
        self._runner = web.AppRunner(rest.make_app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        self._listening: asyncio.Server | None = None

    async def open(self, *, shared: bool) -> None:
        """Listen; OSError when the address cannot be had. shared: another process of ours listens there already."""
        config = self._server.config
        limits = config.serving.limits
        await self._runner.setup()
        manager = self._runner.server
        if manager is None:
            raise RuntimeError("the application runner made no server")
        self._server.metrics.watch("torchmodel_connections", lambda: len(manager.connections))
        loop = asyncio.get_running_loop()
        routes, heads = hot_routes(config), Heads()
        settings = {
            "loop": loop,
            "keepalive_timeout": limits.idle_timeout_seconds,
            "max_line_size": limits.max_header_bytes,
            "max_field_size": limits.max_header_bytes,
            "auto_decompress": False,  # codec.inflate does it, with a cap on what comes out
            "access_log": None,
            "lingering_time": 1.0,  # what is left of a refused body is read for so long, so that the client gets its answer
        }
        self._listening = await loop.create_server(
            lambda: HotConnection(manager, self._server, routes, heads, **settings),
            sock=_bind(config.host, config.port, shared),
            backlog=BACKLOG,
        )

    async def close(self) -> None:
        """Stop listening and close the connections that are idle."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()


def check_free(host: str, port: int) -> None:
    """OSError when somebody else has the port.

    SO_REUSEPORT lets any process of the same user in, so whether the port is free is asked first without it.
    """
    family, kind, _, _, address = _resolve(host, port)
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _bind(host: str, port: int, shared: bool) -> socket.socket:
    """A bound socket that processes of ours may share. A port that somebody else has is an OSError, shared or not."""
    if not shared and port != 0:
        check_free(host, port)
    family, kind, _, _, address = _resolve(host, port)
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
