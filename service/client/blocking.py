"""``TiTokClient``: calls that wait for their answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, Unpack, cast, overload

import httpx

from service.client import calls
from service.client.answers import Answer
from service.client.batches import batches
from service.client.calls import Call, Class, DecodeOptions, GenerateOptions, TokenSource
from service.client.connection import Connection, Progress, total_of
from service.client.errors import NotFound, TiTokError
from service.client.events import GenerationEvents
from service.client.images import ImageSource, image_bytes, image_digest, is_image
from service.client.known_first import Known, KnownFirst
from service.client.results import Encoded, Generated, ImageClass, Limits, Mixed, Model, Picture, Reconstruction, Step
from service.client.retrying import RetryPolicy, Tries

__all__ = ["TiTokClient"]

T = TypeVar("T")
P = TypeVar("P")


class TiTokClient:
    """A TiTok service, called from ordinary code. Its connections are kept open, and may be used by many threads.

    ::

        with TiTokClient("http://127.0.0.1:8000") as titok:
            code = titok.encode("photo.jpg").code
            titok.decode(code).save("back.png")

    Arguments are those of :class:`~service.client.connection.Connection`; ``http`` is an ``httpx.Client`` to use instead
    of one made here, for a proxy or certificates of one's own, and stays open. Every call raises a
    :class:`~service.client.errors.TiTokError`, and ``OSError`` where a file cannot be read.
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
        self._connection = Connection(url, api_key=api_key, timeout=timeout, retry=retry, concurrency=concurrency)
        self._http = http or httpx.Client()
        self._owns_http = http is None
        self._limits: Limits | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            self._http.close()

    # A string is a path, though to a type checker it is a list of strings as well.
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, lookup_first: bool = False
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
        """The tokens of an image; of several in their order, which are read as they are needed.

        ``lookup_first`` asks for images by their digests and sends only those that the service does not know; one that
        tells nothing is sent all of them. A broken image fails the call: ``ServiceProblem.index`` says which one it was.
        """
        if is_image(images):
            image = image_bytes(images)
            if lookup_first and (known := self._known(calls.lookup([image_digest(image)]))):
                [result] = known.values()
                if result is not None:
                    return result
            return self._run(calls.encode(image))
        sources = cast("Iterable[ImageSource]", images)
        limits = self._service_limits()
        parts = batches(
            map(image_bytes, sources),
            max_items=limits.max_images,
            max_bytes=limits.max_body_bytes,
            size=calls.upload_size,
        )
        if lookup_first:
            return self._run_all(map(KnownFirst, parts), self._encode_unknown, total_of(sources), progress)
        uploads = (calls.encode_batch(part.items, part.places) for part in parts)
        return self._run_all(uploads, self._run, total_of(sources), progress)

    def lookup(
        self, images: ImageSource | Iterable[ImageSource], *, progress: Progress | None = None
    ) -> dict[str, Encoded | None]:
        """What the service knows of images, by the SHA-256 of their files in hexadecimal; None: they have to be sent.

        Images are files' bytes, paths, or digests: a string of 64 hexadecimal digits is one. Raises ``NotFound`` where
        the service does not tell.
        """
        sources = [images] if is_image(images) else cast("Iterable[ImageSource]", images)
        parts = batches(map(image_digest, sources), max_items=calls.LOOKUP_DIGESTS)
        questions = (calls.lookup(part.items) for part in parts)
        return dict(self._run_all(questions, self._run, total_of(sources), progress))

    @overload
    def decode(  # type: ignore[overload-overlap]
        self, tokens: TokenSource, **options: Unpack[DecodeOptions]
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
        """The picture of a code, of a result that has one, or of K token ids; of several in their order."""
        if calls.is_tokens(tokens):
            return self._run(calls.decode(tokens, options))
        sources = cast("Iterable[TokenSource]", tokens)
        parts = batches(sources, max_items=self._service_limits().max_images)
        work = (calls.decode_batch(part, options) for part in parts)
        return self._run_all(work, self._run, total_of(sources), progress)

    def reconstruct(self, image: ImageSource) -> Reconstruction:
        """An image after its tokens, and how close it came."""
        return self._run(calls.reconstruct(image_bytes(image)))

    def mix(
        self,
        tokens: Iterable[TokenSource],
        *,
        weights: Sequence[float] | None = None,
        positions: Sequence[int | None] | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Mixed:
        """One picture of several: their weighted mean in codebook space, or, position by position, the token of one."""
        return self._run(calls.mix(tokens, weights, positions, options))

    def generate(
        self, class_: Class, *, n: int = 1, progress: Progress | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generated]:
        """``n`` new images of a class. Image i has the seed ``seed`` + i; a seed is drawn where none is given."""
        most = self._service_limits().max_generate if n > 1 else 1
        return self._run_all(calls.generate(class_, n, most, options), self._run, n, progress)

    def generate_stream(
        self, class_: Class, *, n: int = 1, preview: bool = False, **options: Unpack[GenerateOptions]
    ) -> Iterator[Step | Generated]:
        """Every sampling step of every image as it is done, with a picture of the guess where ``preview`` asks for one and
        there is time; then the images. Leaving the iteration early ends the work (close the iterator, or let it go).

        Tried again only until the first event.
        """
        call, tries, events = (
            calls.generate_events(class_, n, preview, options),
            self._connection.tries(),
            GenerationEvents(),
        )
        response = self._retried(lambda: self._open_stream(call, tries), tries)
        try:
            for chunk in response.iter_bytes():
                yield from events.feed(chunk)
                tries.remaining()
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        finally:
            response.close()
        events.end()

    def models(self) -> list[Model]:
        """What is served, with the limits of a request."""
        return self._run(calls.models())

    def classes(self, search: str | None = None) -> list[ImageClass]:
        """The classes that the generator knows; only those whose names look like ``search``, the closest first."""
        return self._run(calls.classes(self.models()[0].id, search))

    def _service_limits(self) -> Limits:
        if self._limits is None:
            self._limits = self.models()[0].limits
        return self._limits

    def _run(self, call: Call[T]) -> T:
        tries = self._connection.tries()
        return self._retried(lambda: call.result(self._answer(call, tries)), tries)

    def _encode_unknown(self, images: KnownFirst) -> list[Encoded]:
        known = self._known(images.lookup())
        upload = images.upload(known)
        uploaded: list[Encoded] = [] if upload is None else self._run(upload)
        return images.merge(known, uploaded)

    def _known(self, question: Call[list[tuple[str, Encoded | None]]]) -> Known:
        try:
            pairs = self._run(question)
        except NotFound:  # it does not tell
            return {}
        return dict(pairs)

    def _run_all(
        self, parts: Iterable[P], run: Callable[[P], list[T]], total: int | None, progress: Progress | None
    ) -> list[T]:
        """Results of all parts in order, a few of which are under way at a time; the first failure ends the rest."""
        results: list[T] = []
        waiting: deque[Future[list[T]]] = deque()

        def collect() -> None:
            results.extend(waiting.popleft().result())
            if progress is not None:
                progress(len(results), total)

        with ThreadPoolExecutor(self._connection.concurrency, thread_name_prefix="titok-client") as threads:
            try:
                for part in parts:
                    if len(waiting) == self._connection.concurrency:
                        collect()
                    waiting.append(threads.submit(run, part))
                while waiting:
                    collect()
            finally:
                for future in waiting:
                    future.cancel()
        return results

    def _retried(self, attempt: Callable[[], T], tries: Tries) -> T:
        while True:
            try:
                return attempt()
            except TiTokError as error:
                delay = tries.delay_after(error)
            time.sleep(delay)

    def _answer(self, call: Call[Any], tries: Tries) -> Answer:
        try:
            response = self._send(call, tries)
            try:
                chunks = []
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    tries.remaining()  # httpx bounds every single read, not all of them together
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        return Answer(response.status_code, response.headers, b"".join(chunks))

    def _open_stream(self, call: Call[None], tries: Tries) -> httpx.Response:
        try:
            response = self._send(call, tries)
            if response.status_code == httpx.codes.OK:
                return response
            try:
                response.read()
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        raise Answer(response.status_code, response.headers, response.content).error()

    def _send(self, call: Call[Any], tries: Tries) -> httpx.Response:
        return self._http.send(self._http.build_request(**self._connection.request(call, tries)), stream=True)
