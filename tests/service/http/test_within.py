"""A time limit that begins with the first wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from service.http.within import within

pytestmark = pytest.mark.anyio


async def after(*waits: Coroutine[object, object, object]) -> str:
    for wait in waits:
        await wait
    return "done"


async def test_what_waits_for_nothing_has_no_limit() -> None:
    assert await within(-1.0, after()) == "done"


async def test_what_waits_is_done_in_time_and_its_exception_is_its_own() -> None:
    assert await within(60.0, after(asyncio.sleep(0), asyncio.sleep(0.001))) == "done"

    async def broken() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await within(60.0, broken())


async def test_what_waits_too_long_is_ended_where_it_waits() -> None:
    ended = False

    async def wait() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    with pytest.raises(TimeoutError):
        await within(0.01, wait())
    assert ended


async def test_a_cancelled_task_is_cancelled_where_it_waits() -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(within(60.0, wait()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
