"""The application in this process, on a device of the test's own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import httpx
from fastapi import FastAPI

from service.api.app import create_app
from service.engine import InlineLink
from service.processes.process import SWITCH_SECONDS
from service.settings import Settings


def served(settings: Settings, open_device: Callable[[Settings], Any]) -> FastAPI:
    """The application, not started; its device is opened in a thread of this process."""
    return create_app(settings, [InlineLink(partial(open_device, settings))])


@asynccontextmanager
async def service(device: Any, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which is ready; ``device.release`` is set at the end, so that nothing is held."""
    app = served(Settings(**{"drain_seconds": 5, "access_log": False, **settings}), lambda _: device)
    async with (
        _quick_switches(),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        try:
            await until(client, lambda health: health["status"] == "ready")
            yield client
        finally:
            device.release.set()


@asynccontextmanager
async def _quick_switches() -> AsyncIterator[None]:
    """Lets threads take turns as often as in the service's own processes: ``until`` would starve the others."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def app_of(client: httpx.AsyncClient) -> FastAPI:
    """The application that a client calls."""
    return cast(FastAPI, cast(httpx.ASGITransport, client._transport).app)


async def until(client: httpx.AsyncClient, condition: Callable[[Any], bool]) -> httpx.Response:
    """The first answer of /healthz that meets the condition, which is given 20 seconds: less than a request, whose end
    would hide that it never came true. In-process calls never suspend, so the loop is let run.
    """
    async with asyncio.timeout(20):
        while True:
            answer = await client.get("/healthz")
            if condition(answer.json()):
                return answer
            await asyncio.sleep(0)
