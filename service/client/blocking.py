"""``TiTokClient``: the blocking client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, Unpack, cast, overload

import httpx

from . import calls
from .calls import Class, DecodeOptions, GenerateOptions, TokenSource
from .connection import Connection, Progress
from .events import GenerationEvents
from .images import ImageSource
from .operations import Operations
from .results import Encoded, Generated, ImageClass, Mixed, Model, Picture, Reconstruction, Step
from .retries import Attempts, RetryPolicy

T = TypeVar("T")
S = TypeVar("S")


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

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 4,
        http: httpx.Client | None = None,
    ) -> None:
        self._http = http or httpx.Client()
        self._owns_http = http is None
        self._connection = Connection(
            _BlockingTransport(self._http), url, api_key=api_key, timeout=timeout, retry=retry, concurrency=concurrency
        )
        self._operations = Operations(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            self._http.close()

    # A string is a path, although its type is also that of an iterable of strings.
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, lookup_first: bool = False, progress: Progress | None = None
    ) -> Encoded: ...

    @overload
    def encode(
        self, images: Iterable[ImageSource], *, lookup_first: bool = False, progress: Progress | None = None
    ) -> list[Encoded]: ...

    def encode(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        lookup_first: bool = False,
        progress: Progress | None = None,
    ) -> Encoded | list[Encoded]:
        """The tokens of one image, or of several in their order; an iterable is read as needed.

        ``lookup_first`` looks images up by their digests and uploads only those that are not cached; all of them if the
        service does not offer look-ups. A broken image fails the call: ``ServiceProblem.index`` is its position.
        """
        result = run(self._operations.encode(images, lookup_first=lookup_first, progress=progress))
        return cast("Encoded | list[Encoded]", result)

    def lookup(
        self, images: ImageSource | Iterable[ImageSource], *, progress: Progress | None = None
    ) -> dict[str, Encoded | None]:
        """The cached tokens of images, by the SHA-256 of their files in hexadecimal; None for those that are not cached.

        Images are as for ``encode``, or digests: a string of 64 hexadecimal digits is one. Raises ``NotFound`` if the
        service does not offer look-ups.
        """
        return run(self._operations.lookup(images, progress=progress))

    @overload
    def decode(  # type: ignore[overload-overlap]
        self, tokens: TokenSource, *, progress: Progress | None = None, **options: Unpack[DecodeOptions]
    ) -> Picture: ...

    @overload
    def decode(
        self, tokens: Iterable[TokenSource], *, progress: Progress | None = None, **options: Unpack[DecodeOptions]
    ) -> list[Picture]: ...

    def decode(
        self,
        tokens: TokenSource | Iterable[TokenSource],
        *,
        progress: Progress | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Picture | list[Picture]:
        """The image of a code, of a result that has one, or of K token ids; or the images of several, in their order."""
        result = run(self._operations.decode(tokens, progress=progress, **options))
        return cast("Picture | list[Picture]", result)

    def reconstruct(self, image: ImageSource) -> Reconstruction:
        """An image after encoding and decoding, with PSNR and SSIM."""
        return run(self._operations.reconstruct(image))

    def mix(
        self,
        tokens: Iterable[TokenSource],
        *,
        weights: Sequence[float] | None = None,
        positions: Sequence[int | None] | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Mixed:
        """One image of several codes: their weighted mean in codebook space, or the token of one code per position."""
        return run(self._operations.mix(tokens, weights=weights, positions=positions, **options))

    def generate(
        self, class_: Class, *, n: int = 1, progress: Progress | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generated]:
        """``n`` new images of a class. Image i has the seed ``seed`` + i; ``seed`` is random by default."""
        return run(self._operations.generate(class_, n=n, progress=progress, **options))

    def generate_stream(
        self, class_: Class, *, n: int = 1, preview: bool = False, **options: Unpack[GenerateOptions]
    ) -> Iterator[Step | Generated]:
        """Each sampling step of each image as it is done, then the images. ``preview`` adds an image to steps, unless the
        service is busy. Closing the iterator, or leaving its loop, stops the generation.

        Retries end with the first event.
        """
        call, events = calls.generate_events(class_, n, preview, options), GenerationEvents()
        response, attempts = run(self._connection.open_stream(call))
        try:
            with self._connection.errors(attempts):
                for chunk in response.iter_bytes():
                    yield from events.feed(chunk)
                    attempts.remaining()
        finally:
            response.close()
        events.end()

    def models(self) -> list[Model]:
        """The models of the service, with the limits of a request."""
        return run(self._operations.models())

    def classes(self, search: str | None = None) -> list[ImageClass]:
        """The classes of the generator; with ``search``, those with similar names, most similar first."""
        return run(self._operations.classes(search))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client must not suspend")


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
