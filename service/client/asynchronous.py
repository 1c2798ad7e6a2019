"""``AsyncTiTokClient``: the asyncio client."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar, Unpack

import httpx

from .calls import Class, GenerateOptions
from .connection import ClientOptions, Connection
from .events import GenerationEvents, generate_events
from .operations import Operations
from .results import Generated, Step
from .retries import Attempts

T = TypeVar("T")
S = TypeVar("S")


class AsyncTiTokClient(Operations):
    """An asyncio client of a TiTok service, with the calls and options of :class:`~.blocking.TiTokClient`.

    It reads files, and encodes pixels, in threads. ``http`` is an ``httpx.AsyncClient``.
    """

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None, **options: Unpack[ClientOptions]) -> None:
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None
        super().__init__(Connection(_AsyncTransport(self._http), url, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def generate_stream(
        self, class_: Class, *, n: int = 1, preview: bool = False, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Step | Generated]:
        """Each sampling step of each image as it is done, then the images. Closing the iterator stops the generation."""
        call, events = generate_events(class_, n, preview, options), GenerationEvents()
        response, attempts = await self._connection.open_stream(call)
        try:
            with self._connection.errors(attempts):
                async for chunk in response.aiter_bytes():
                    for event in events.feed(chunk):
                        yield event
                    attempts.remaining()
        finally:
            await response.aclose()
        events.end()


class _AsyncTransport:
    """A ``Transport`` on asyncio's event loop."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def send(self, request: Mapping[str, Any]) -> httpx.Response:
        async with asyncio.timeout(request["timeout"]):
            return await self._http.send(self._http.build_request(**request), stream=True)

    async def read(self, response: httpx.Response, attempts: Attempts) -> bytes:
        try:
            async with asyncio.timeout(attempts.remaining()):
                return await response.aread()
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def compute(self, function: Callable[[S], T], argument: S) -> T:
        return await asyncio.to_thread(function, argument)

    @contextmanager
    def iterate(self, items: AsyncIterable[S]) -> Iterator[Iterable[S]]:
        loop, iterator = asyncio.get_running_loop(), aiter(items)
        taken: list[Future[S]] = []  # the last one; ``map`` takes items in a thread

        async def take() -> S:
            return await anext(iterator)

        def each() -> Iterator[S]:
            with suppress(StopAsyncIteration):
                while True:
                    taken[:] = [asyncio.run_coroutine_threadsafe(take(), loop)]
                    yield taken[0].result()

        try:
            yield each()
        finally:
            for future in taken:
                future.cancel()  # or the thread would wait for an item after the call has failed

    async def map(
        self, function: Callable[[S], Coroutine[Any, Any, T]], items: Iterable[S], limit: int, done: Callable[[T], None]
    ) -> None:
        pending: deque[asyncio.Task[T]] = deque()
        remaining = iter(items)
        try:
            # In a thread, because the next item may read files.
            while (item := await asyncio.to_thread(next, remaining, None)) is not None:
                if len(pending) == limit:
                    done(await pending[0])
                    pending.popleft()
                pending.append(asyncio.create_task(function(item)))
            while pending:
                done(await pending[0])
                pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
