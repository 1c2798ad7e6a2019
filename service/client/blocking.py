"""``TiTokClient``: the blocking client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar, Unpack

import httpx

from .calls import Class, GenerateOptions
from .connection import ClientOptions, Connection
from .events import GenerationEvents, generate_events
from .operations import Operations
from .results import Generated, Step
from .retries import Attempts

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client must not suspend")


def _blocking(
    method: Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[TiTokClient, P], T]:
    """The blocking form of a method of ``Operations``; type checkers keep its signature and overloads."""

    @wraps(method)
    def call(client: TiTokClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(client.operations, *args, **kwargs))

    return call


class TiTokClient:
    """A blocking client of a TiTok service. It keeps connections open, and threads may share it.

    ::

        with TiTokClient("http://127.0.0.1:8000") as titok:
            code = titok.encode("photo.jpg").code
            titok.decode(code).save("back.png")

    Options are those of :class:`~.connection.Connection`. ``http`` is an ``httpx.Client`` to use, for example with a proxy
    or certificates; the caller closes it. Every call raises :class:`~.errors.TiTokError`, and ``OSError`` for a file that
    cannot be read.
    """

    def __init__(self, url: str, *, http: httpx.Client | None = None, **options: Unpack[ClientOptions]) -> None:
        self._http = http or httpx.Client()
        self._owns_http = http is None
        self._connection = Connection(_BlockingTransport(self._http), url, **options)
        self.operations = Operations(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            self._http.close()

    encode = _blocking(Operations.encode)
    lookup = _blocking(Operations.lookup)
    decode = _blocking(Operations.decode)
    reconstruct = _blocking(Operations.reconstruct)
    mix = _blocking(Operations.mix)
    generate = _blocking(Operations.generate)
    models = _blocking(Operations.models)
    classes = _blocking(Operations.classes)

    def generate_stream(
        self, class_: Class, *, n: int = 1, preview: bool = False, **options: Unpack[GenerateOptions]
    ) -> Iterator[Step | Generated]:
        """Each sampling step of each image as it is done, then the images. ``preview`` adds an image to steps, unless the
        service is busy. Closing the iterator, or leaving its loop, stops the generation.

        Retries end with the first event.
        """
        call, events = generate_events(class_, n, preview, options), GenerationEvents()
        response, attempts = run(self._connection.open_stream(call))
        try:
            with self._connection.errors(attempts):
                for chunk in response.iter_bytes():
                    yield from events.feed(chunk)
                    attempts.remaining()
        finally:
            response.close()
        events.end()


class _BlockingTransport:
    """A ``Transport`` whose coroutines block and never suspend."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def send(self, request: Mapping[str, Any]) -> httpx.Response:
        return self._http.send(self._http.build_request(**request), stream=True)

    async def read(self, response: httpx.Response, attempts: Attempts) -> bytes:
        try:
            chunks = []
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                attempts.remaining()  # httpx's timeout is for one read of the socket, not for the body
            return b"".join(chunks)
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    async def compute(self, function: Callable[[S], T], argument: S) -> T:
        return function(argument)

    def iterate(self, items: AsyncIterable[S]) -> NoReturn:  # noqa: ARG002
        raise TypeError("an asynchronous iterable needs AsyncTiTokClient")

    async def map(
        self, function: Callable[[S], Coroutine[Any, Any, T]], items: Iterable[S], limit: int, done: Callable[[T], None]
    ) -> None:
        pending: deque[Future[T]] = deque()
        with ThreadPoolExecutor(limit, thread_name_prefix="titok-client") as threads:
            try:
                for item in items:
                    if len(pending) == limit:
                        done(pending.popleft().result())
                    pending.append(threads.submit(lambda part: run(function(part)), item))
                while pending:
                    done(pending.popleft().result())
            finally:
                for future in pending:
                    future.cancel()
