"""Sends calls: retries, deadlines and concurrency, written once for both clients.

The coroutines here await nothing but a :class:`Transport`. ``AsyncTiTokClient`` awaits them on its event loop. The transport
of ``TiTokClient`` blocks instead of suspending, so its coroutines run from start to end without a loop
(:func:`~.blocking.run`).
"""

import json
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar

import httpx

from .calls import Call
from .errors import ConnectionFailed, TiTokError
from .responses import Response
from .retries import Attempts, RetryPolicy
from .version import VERSION

T = TypeVar("T")
S = TypeVar("S")

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called after each request of a list with the number of results so far and the total (None if it is not known)."""


def _plain_number(value: Any) -> Any:
    """The Python number of a NumPy scalar or of a tensor with one element."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is no number, text or list")


class ClientOptions(TypedDict, total=False):
    """Options of a client; :class:`Connection` documents them."""

    api_key: str | None
    timeout: float | None
    retry: RetryPolicy | None
    concurrency: int


class Transport(Protocol):
    """What a connection needs from blocking or asynchronous code."""

    async def send(self, request: Mapping[str, Any]) -> httpx.Response:
        """Sends a request, given as arguments of httpx's ``build_request``; the response's body is not read yet."""

    async def read(self, response: httpx.Response, attempts: Attempts) -> bytes:
        """Receives the body and closes the response. Raises ``DeadlineExceeded``."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def compute(self, function: Callable[[S], T], argument: S) -> T:
        """Calls a function that reads files or takes long."""

    def iterate(self, items: AsyncIterable[S]) -> AbstractContextManager[Iterable[S]]:
        """The items for ``map``. Raises ``TypeError`` in blocking code."""

    async def map(
        self, function: Callable[[S], Coroutine[Any, Any, T]], items: Iterable[S], limit: int, done: Callable[[T], None]
    ) -> None:
        """Runs a coroutine function for each item, at most ``limit`` at a time, and passes the results, in order, to
        ``done``. Takes items as they are needed. The first failure cancels the rest.
        """


class Connection:
    """A service's URL, with the options of a client.

    Args:
        transport: the means of the client to send, to wait and to run calls concurrently.
        url: address of the service, for example ``http://127.0.0.1:8000``, with or without ``/v1``.
        api_key: one of the service's API keys, if it requires one.
        timeout: seconds for one request, all attempts and the delays between them included; None: no limit. The service
            receives the remaining time as its own deadline.
        retry: number of attempts, and delays between them.
        concurrency: most requests of one long list at a time.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 4,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not a service's URL, which begins with http:// or https://")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.transport = transport
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"User-Agent": f"titok-client/{VERSION}", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._concurrency = concurrency

    async def run(self, call: Call[T]) -> T:
        """Sends a call until an attempt succeeds. Raises ``TiTokError``."""

        async def attempt(attempts: Attempts) -> T:
            return call.result(await self._response(await self._send(call, attempts), attempts))

        return await self._retried(attempt, Attempts(self._retry, self._timeout))

    @contextmanager
    def iterated(self, items: object, expected: str) -> Iterator[Iterable[Any]]:
        """The items of an iterable, asynchronous ones too. Raises ``TypeError``, with what was ``expected``."""
        if isinstance(items, AsyncIterable):
            with self.transport.iterate(items) as each:
                yield each
        elif isinstance(items, Iterable):
            yield items
        else:
            raise TypeError(f"expected {expected}; not {type(items).__name__}")

    async def run_all(
        self,
        function: Callable[[S], Coroutine[Any, Any, list[T]]],
        parts: Iterable[S],
        progress: Progress | None,
        *,
        items: Iterable[object],
    ) -> list[T]:
        """The results of all parts of ``items``, in order; several parts are processed at a time."""
        total = len(items) if isinstance(items, Sized) else None
        results: list[T] = []

        def done(part: list[T]) -> None:
            results.extend(part)
            if progress is not None:
                progress(len(results), total)

        await self.transport.map(function, parts, self._concurrency, done)
        return results

    async def open_stream(self, call: Call[Any]) -> tuple[httpx.Response, Attempts]:
        """A response of status 200 whose body is not read yet. Raises ``TiTokError``."""

        async def attempt(attempts: Attempts) -> tuple[httpx.Response, Attempts]:
            response = await self._send(call, attempts)
            if response.status_code != httpx.codes.OK:
                raise (await self._response(response, attempts)).error()
            return response, attempts

        return await self._retried(attempt, Attempts(self._retry, self._timeout))

    @contextmanager
    def errors(self, attempts: Attempts) -> Iterator[None]:
        """Raises httpx's errors as ``TiTokError``."""
        try:
            yield
        except (httpx.TimeoutException, TimeoutError) as error:
            raise attempts.deadline_exceeded() from error
        except httpx.HTTPError as error:
            raise ConnectionFailed(f"{self._url}: {error or type(error).__name__}") from error

    async def _retried(self, attempt: Callable[[Attempts], Coroutine[Any, Any, T]], attempts: Attempts) -> T:
        while True:
            try:
                with self.errors(attempts):
                    return await attempt(attempts)
            except TiTokError as error:
                delay = attempts.delay_after(error)
            await self.transport.sleep(delay)

    async def _send(self, call: Call[Any], attempts: Attempts) -> httpx.Response:
        request = {
            "method": call.method,
            "url": self._url + call.path,
            "headers": {**self._headers, **call.headers, **attempts.headers()},
            "timeout": attempts.remaining(),
            **call.body,
        }
        if "json" in request:
            request["content"] = json.dumps(request.pop("json"), allow_nan=False, default=_plain_number).encode()
            request["headers"]["Content-Type"] = "application/json"
        return await self.transport.send(request)

    async def _response(self, response: httpx.Response, attempts: Attempts) -> Response:
        return Response(response.status_code, response.headers, await self.transport.read(response, attempts))
