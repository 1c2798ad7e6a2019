"""``AsyncTiTokClient``: the same calls for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
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

__all__ = ["AsyncTiTokClient"]

T = TypeVar("T")
P = TypeVar("P")


class AsyncTiTokClient:
    """A TiTok service, called from asyncio. See :class:`~service.client.blocking.TiTokClient` for what its calls do.

    Files are read, and pixels packed, in threads. ``http`` is an ``httpx.AsyncClient``.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 4,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._connection = Connection(url, api_key=api_key, timeout=timeout, retry=retry, concurrency=concurrency)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None
        self._limits: Limits | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._owns_http:
            await self._http.aclose()

    # A string is a path, though to a type checker it is a list of strings as well.
    @overload
    async def encode(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, lookup_first: bool = False
    ) -> Encoded: ...

    @overload
    async def encode(
        self, images: Iterable[ImageSource], *, lookup_first: bool = False, progress: Progress | None = None
    ) -> list[Encoded]: ...

    async def encode(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        lookup_first: bool = False,
        progress: Progress | None = None,
    ) -> Encoded | list[Encoded]:
        """The tokens of an image; of several in their order, which are read as they are needed."""
        if is_image(images):
            image = await asyncio.to_thread(image_bytes, images)
            if lookup_first and (known := await self._known(calls.lookup([image_digest(image)]))):
                [result] = known.values()
                if result is not None:
                    return result
            return await self._run(calls.encode(image))
        sources = cast("Iterable[ImageSource]", images)
        limits = await self._service_limits()
        parts = batches(
            map(image_bytes, sources),
            max_items=limits.max_images,
            max_bytes=limits.max_body_bytes,
            size=calls.upload_size,
        )
        if lookup_first:
            return await self._run_all(map(KnownFirst, parts), self._encode_unknown, total_of(sources), progress)
        uploads = (calls.encode_batch(part.items, part.places) for part in parts)
        return await self._run_all(uploads, self._run, total_of(sources), progress)

    async def lookup(
        self, images: ImageSource | Iterable[ImageSource], *, progress: Progress | None = None
    ) -> dict[str, Encoded | None]:
        """What the service knows of images, by the SHA-256 of their files in hexadecimal; None: they have to be sent."""
        sources = [images] if is_image(images) else cast("Iterable[ImageSource]", images)
        parts = batches(map(image_digest, sources), max_items=calls.LOOKUP_DIGESTS)
        questions = (calls.lookup(part.items) for part in parts)
        return dict(await self._run_all(questions, self._run, total_of(sources), progress))

    @overload
    async def decode(  # type: ignore[overload-overlap]
        self, tokens: TokenSource, **options: Unpack[DecodeOptions]
    ) -> Picture: ...

    @overload
    async def decode(
        self, tokens: Iterable[TokenSource], *, progress: Progress | None = None, **options: Unpack[DecodeOptions]
    ) -> list[Picture]: ...

    async def decode(
        self,
        tokens: TokenSource | Iterable[TokenSource],
        *,
        progress: Progress | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Picture | list[Picture]:
        """The picture of a code, of a result that has one, or of K token ids; of several in their order."""
        if calls.is_tokens(tokens):
            call = calls.decode(tokens, options)
            return await self._run(call)
        sources = cast("Iterable[TokenSource]", tokens)
        parts = batches(sources, max_items=(await self._service_limits()).max_images)
        work = (calls.decode_batch(part, options) for part in parts)
        return await self._run_all(work, self._run, total_of(sources), progress)

    async def reconstruct(self, image: ImageSource) -> Reconstruction:
        """An image after its tokens, and how close it came."""
        return await self._run(calls.reconstruct(await asyncio.to_thread(image_bytes, image)))

    async def mix(
        self,
        tokens: Iterable[TokenSource],
        *,
        weights: Sequence[float] | None = None,
        positions: Sequence[int | None] | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Mixed:
        """One picture of several: their weighted mean in codebook space, or, position by position, the token of one."""
        return await self._run(calls.mix(tokens, weights, positions, options))

    async def generate(
        self, class_: Class, *, n: int = 1, progress: Progress | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generated]:
        """``n`` new images of a class. Image i has the seed ``seed`` + i; a seed is drawn where none is given."""
        most = (await self._service_limits()).max_generate if n > 1 else 1
        return await self._run_all(calls.generate(class_, n, most, options), self._run, n, progress)

    async def generate_stream(
        self, class_: Class, *, n: int = 1, preview: bool = False, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Step | Generated]:
        """Every sampling step of every image as it is done, then the images. Close it to end the work early."""
        call, tries = calls.generate_events(class_, n, preview, options), self._connection.tries()
        events = GenerationEvents()
        response = await self._retried(lambda: self._open_stream(call, tries), tries)
        try:
            async for chunk in response.aiter_bytes():
                for event in events.feed(chunk):
                    yield event
                tries.remaining()
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        finally:
            await response.aclose()
        events.end()

    async def models(self) -> list[Model]:
        """What is served, with the limits of a request."""
        return await self._run(calls.models())

    async def classes(self, search: str | None = None) -> list[ImageClass]:
        """The classes that the generator knows; only those whose names look like ``search``, the closest first."""
        return await self._run(calls.classes((await self.models())[0].id, search))

    async def _service_limits(self) -> Limits:
        if self._limits is None:
            self._limits = (await self.models())[0].limits
        return self._limits

    async def _run(self, call: Call[T]) -> T:
        tries = self._connection.tries()

        async def attempt() -> T:
            return call.result(await self._answer(call, tries))

        return await self._retried(attempt, tries)

    async def _encode_unknown(self, images: KnownFirst) -> list[Encoded]:
        known = await self._known(images.lookup())
        upload = images.upload(known)
        uploaded: list[Encoded] = [] if upload is None else await self._run(upload)
        return images.merge(known, uploaded)

    async def _known(self, question: Call[list[tuple[str, Encoded | None]]]) -> Known:
        try:
            pairs = await self._run(question)
        except NotFound:  # it does not tell
            return {}
        return dict(pairs)

    async def _run_all(
        self,
        parts: Iterable[P],
        run: Callable[[P], Coroutine[Any, Any, list[T]]],
        total: int | None,
        progress: Progress | None,
    ) -> list[T]:
        """Results of all parts in order, a few of which are under way at a time; the first failure ends the rest."""
        results: list[T] = []
        waiting: deque[asyncio.Task[list[T]]] = deque()
        remaining = iter(parts)

        async def collect() -> None:
            results.extend(await waiting[0])
            waiting.popleft()
            if progress is not None:
                progress(len(results), total)

        try:
            # The next part is made in a thread: files are read for it.
            while (part := await asyncio.to_thread(next, remaining, None)) is not None:
                if len(waiting) == self._connection.concurrency:
                    await collect()
                waiting.append(asyncio.create_task(run(part)))
            while waiting:
                await collect()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return results

    async def _retried(self, attempt: Callable[[], Awaitable[T]], tries: Tries) -> T:
        while True:
            try:
                return await attempt()
            except TiTokError as error:
                delay = tries.delay_after(error)
            await asyncio.sleep(delay)

    async def _answer(self, call: Call[Any], tries: Tries) -> Answer:
        try:
            async with asyncio.timeout(tries.remaining()):
                response = await self._send(call, tries)
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise tries.deadline_exceeded() from error
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        return Answer(response.status_code, response.headers, content)

    async def _open_stream(self, call: Call[None], tries: Tries) -> httpx.Response:
        try:
            response = await self._send(call, tries)
            if response.status_code == httpx.codes.OK:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._connection.failure(error, tries) from error
        raise Answer(response.status_code, response.headers, response.content).error()

    async def _send(self, call: Call[Any], tries: Tries) -> httpx.Response:
        return await self._http.send(self._http.build_request(**self._connection.request(call, tries)), stream=True)
