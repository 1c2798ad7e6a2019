"""uvicorn's server on an open socket, with a shutdown that loses no request.

::

    start_draining()   the application answers with ``Connection: close``; connections are still accepted
    stop_accepting()   the backlog is accepted and the listener closed; then
                         a connection with a request   is waited for, at most drain_seconds
                         an idle connection            is closed when it has been idle for idle_seconds

A client that reuses its connection learns from a response that the connection ends. Closing a connection while a request is
on its way would lose the request; hence ``idle_seconds``, which count from the start of the drain.

``HttpServer`` overrides ``capture_signals`` and ``shutdown`` of ``uvicorn.Server`` and uses ``servers``, ``lifespan``,
``server_state`` and ``config.http_protocol_class``. The upper bound for uvicorn in pyproject.toml is for these, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.protocol import ConnectionLimits, LimitedProtocol, OpenConnections
from service.http.sockets import refuse_handshakes

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
CANCEL_SECONDS = 1.0  # for the responses of requests that are cancelled at the end of the drain


class HttpServer(uvicorn.Server):
    """Serves ``app`` on ``listener`` until ``stop_accepting``. It does not handle signals. ``on_refusal`` is called with the
    status and the id of each request that is refused before ``app`` sees it. ``X-Forwarded-For`` and ``X-Forwarded-Proto``
    of ``trusted_proxies`` are believed, which have removed ``root_path`` from the paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        lifespan: Literal["on", "off"],
        drain_seconds: float,
        idle_seconds: float,
        limits: ConnectionLimits,
        on_refusal: Callable[[int, str], None] = lambda _status, _request_id: None,
        trusted_proxies: Sequence[str] = (),
        root_path: str = "",
    ) -> None:
        self._open = OpenConnections()
        protocol = partial(LimitedProtocol, limits=limits, open_connections=self._open, on_refusal=on_refusal)
        super().__init__(
            uvicorn.Config(
                _until_cancelled(app),
                http=protocol,  # type: ignore[arg-type]
                ws="none",
                lifespan=lifespan,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                root_path=root_path,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._listener = listener
        self._drain_seconds = drain_seconds
        self._idle_seconds = idle_seconds
        self._drain_started: float | None = None
        self._is_shared = False

    async def run_until_stopped(self) -> None:
        """Serves; returns when every connection has ended."""
        await self.serve([self._listener])

    def start_draining(self) -> None:
        """Starts to count ``idle_seconds``. The application sends ``Connection: close``."""
        if self._drain_started is None:
            self._drain_started = time.monotonic()

    def stop_accepting(self, *, shared: bool) -> None:
        """Makes ``run_until_stopped`` finish open requests and return. ``shared``: other processes still accept on the same
        socket, and the backlog is left to them.
        """
        self.start_draining()
        self._is_shared = shared
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Installs no signal handlers."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Replaces uvicorn's, which resets the backlog and closes connections on which a request may be arriving."""
        if not self._is_shared:
            refuse_handshakes(self._listener)
            await self._accept_backlog()
        for server in self.servers:
            server.close()
        self._listener.close()
        await self._wait_for_connections(self._drain_seconds)
        if late := list(self.server_state.tasks):
            log.warning("cancelling %d requests: the time to drain is over", len(late))
            for task in late:
                task.cancel()
            await self._wait_for_connections(CANCEL_SECONDS)
        await self.lifespan.shutdown()

    async def _accept_backlog(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError:  # the backlog is empty, or no file descriptor is left
                return
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def _wait_for_connections(self, seconds: float) -> None:
        """Returns when every connection has ended or the time is over. Closes connections that have been idle for long."""
        deadline = time.monotonic() + seconds
        while self.server_state.connections and time.monotonic() < deadline:
            for connection in list(self._open.idle):
                if not self._has_idled(connection):
                    break
                if connection.is_idle and not _has_input(connection.transport):
                    connection.transport.close()
            await asyncio.sleep(0.02)

    def _has_idled(self, connection: LimitedProtocol) -> bool:
        since = max(connection.idle_since, self._drain_started or 0.0)
        return time.monotonic() - since >= self._idle_seconds


def _until_cancelled(app: ASGIApp) -> ASGIApp:
    """``shutdown`` cancels requests, and logs so; uvicorn would add a traceback for each."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return run


def _has_input(transport: asyncio.Transport) -> bool:
    """Whether the socket has data that the event loop has not read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
