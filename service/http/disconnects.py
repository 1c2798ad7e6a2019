"""Cancels the work of a request when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work``; if the client disconnects, cancels it and raises ``ClientDisconnect``.

    The body must have been read before: the next message of the connection is then the disconnect.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a request is handled in a task")
    is_disconnected = False

    async def watch() -> None:
        nonlocal is_disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_disconnected = True
        task.cancel()

    # The watcher gets the task of its own, not the work, so that the response does not wait for a task to be scheduled.
    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_disconnected and task.cancelling() == 1:
            raise ClientDisconnect from None
        raise  # cancelled by the server
    finally:
        watcher.cancel()
        if is_disconnected:
            task.uncancel()
