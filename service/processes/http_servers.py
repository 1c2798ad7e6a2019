"""The HTTP servers of a process, as the settings configure them."""

from __future__ import annotations

import socket
from functools import partial

from starlette.types import ASGIApp

from service.http.middleware import record_refusal
from service.http.protocol import ConnectionLimits
from service.http.server import HttpServer
from service.settings import Settings
from service.telemetry.metrics import Metrics


def public_server(app: ASGIApp, listener: socket.socket, settings: Settings, metrics: Metrics) -> HttpServer:
    """The server of the public API; it starts and stops the application (lifespan)."""
    return HttpServer(
        app,
        listener,
        lifespan="on",
        drain_seconds=settings.drain_seconds,
        idle_seconds=settings.shutdown_delay,
        limits=_limits(settings),
        on_refusal=partial(record_refusal, metrics, settings.access_log),
        trusted_proxies=settings.trusted_proxies,
        root_path=settings.root_path,
    )


def admin_server(app: ASGIApp, listener: socket.socket, settings: Settings) -> HttpServer:
    """The server of the admin port; it stops at once."""
    return HttpServer(app, listener, lifespan="off", drain_seconds=1.0, idle_seconds=0.0, limits=_limits(settings))


def _limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        connections=settings.max_connections,
        header_bytes=settings.max_header_bytes,
        header_seconds=settings.header_timeout,
    )
