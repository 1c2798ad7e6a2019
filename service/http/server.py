"""Uvicorn, run by its owner, and closed so that no request is lost.

::

    start_draining()   every answer now ends its connection; connections are still taken
    stop_accepting()   the backlog is taken over, the listener closed; then
                         a connection that works   is waited for, drain_seconds at most
                         a connection that idles   is closed once it was quiet for quiet_seconds

A client that reuses its connection learns from an answer that it ends; closing one on which a request may just be on its
way would lose that request. Hence the quiet time, counted from the beginning of the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from service.http.protocol import ConnectionLimits, LimitedProtocol
from service.http.sockets import refuse_handshakes

__all__ = ["HttpServer"]

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
GIVE_UP_SECONDS = 1.0  # for telling the requests that the drain did not finish


class HttpServer(uvicorn.Server):
    """Serves ``app`` on ``listener`` until told to stop. It leaves signals to its owner."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        lifespan: Literal["on", "off"],
        drain_seconds: float,
        quiet_seconds: float,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(LimitedProtocol, limits=limits),  # type: ignore[arg-type]
                lifespan=lifespan,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._listener = listener
        self._drain_seconds = drain_seconds
        self._quiet_seconds = quiet_seconds
        self._draining = False
        self._shared = False
        self._quiet_since: dict[Any, tuple[Any, float]] = {}  # connection -> its last request, and when it was over

    async def run_until_stopped(self) -> None:
        """Serves; returns when every connection has ended."""
        await self.serve([self._listener])

    def start_draining(self) -> None:
        """Begins to watch which connections are quiet. Answering with ``Connection: close`` is the application's."""
        self._draining = True

    def stop_accepting(self, *, shared: bool) -> None:
        """Ends ``run_until_stopped`` in good order. ``shared``: others still accept on the same socket, and the backlog
        is theirs.
        """
        self._draining, self._shared = True, shared
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's pulse, every tenth of a second."""
        if self._draining:
            self._watch_quiet_connections()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Replaces uvicorn's, which resets the backlog and closes connections on which a request may be coming."""
        if not self._shared:
            refuse_handshakes(self._listener)
            await self._take_backlog()
        for server in self.servers:
            server.close()
        self._listener.close()
        await self._connections_end(self._drain_seconds)
        if late := list(self.server_state.tasks):
            log.warning("%d requests were given up: the time to drain is over", len(late))
            for task in late:
                task.cancel()
            await self._connections_end(GIVE_UP_SECONDS)
        await self.lifespan.shutdown()

    async def _take_backlog(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError:  # none is left, or there is no descriptor for it
                return
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def _connections_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.server_state.connections and time.monotonic() < deadline:
            for connection in self._watch_quiet_connections():
                connection.shutdown()
            await asyncio.sleep(0.02)

    def _watch_quiet_connections(self) -> list[Any]:
        """Those that have been without a request for long enough."""
        now = time.monotonic()
        before, self._quiet_since = self._quiet_since, {}
        connections: set[Any] = self.server_state.connections
        for connection in connections:
            if connection.is_quiet:
                cycle = connection.cycle
                last, since = before.get(connection, (cycle, now))
                self._quiet_since[connection] = (cycle, since if last is cycle else now)
        return [
            connection
            for connection, (_, since) in self._quiet_since.items()
            if now - since >= self._quiet_seconds and not _has_arrived(connection.transport)
        ]


def _has_arrived(transport: asyncio.Transport) -> bool:
    """Whether there is something to read that the event loop has not seen yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
