"""A time limit that costs nothing where nothing is waited for: ``asyncio.timeout`` only from the first wait on."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["within"]

Result = TypeVar("Result")


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, run in the current task. Raises ``TimeoutError`` when it has waited for ``seconds``."""
    try:
        awaited = work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    async with asyncio.timeout(seconds):
        return await _go_on(work, awaited)


@types.coroutine
def _go_on(work: Coroutine[Any, Any, Result], awaited: Any) -> Generator[Any, Any, Result]:
    """A coroutine that has been started, from what it waits for first."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(sent)
    except StopIteration as end:
        result: Result = end.value
        return result
