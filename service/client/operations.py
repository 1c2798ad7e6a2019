"""The operations of both clients: one image or a list, split into requests, with or without a look-up first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from . import calls
from .batches import Batch, batches
from .calls import Class, DecodeOptions, GenerateOptions, TokenSource
from .connection import Connection, Progress
from .errors import NotFound
from .images import ImageSource, image_bytes, image_digest, is_image
from .results import Encoded, Generated, ImageClass, Limits, Mixed, Model, Picture, Reconstruction


class Operations:
    """See :class:`~.blocking.TiTokClient` for what each operation does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._run = connection.run
        self._compute = connection.transport.compute
        self._limits: Limits | None = None

    async def encode(
        self, images: ImageSource | Iterable[ImageSource], lookup_first: bool, progress: Progress | None
    ) -> Encoded | list[Encoded]:
        """The tokens of one image, or of several."""
        if is_image(images):
            return await self._encode_one(images, lookup_first)
        sources = cast("Iterable[ImageSource]", images)
        limits = await self._service_limits()
        parts = batches(
            map(image_bytes, sources),
            max_items=limits.max_images,
            max_bytes=limits.max_body_bytes,
            size=calls.upload_size,
        )
        function = self._encode_unknown if lookup_first else self._encode_batch
        return await self.connection.run_all(function, parts, progress, items=sources)

    async def lookup(
        self, images: ImageSource | Iterable[ImageSource], progress: Progress | None
    ) -> dict[str, Encoded | None]:
        """The cached tokens of images, by the SHA-256 of their files."""
        sources = [images] if is_image(images) else cast("Iterable[ImageSource]", images)
        parts = batches(map(image_digest, sources), max_items=calls.LOOKUP_DIGESTS)
        requests = (calls.lookup(part.items) for part in parts)
        return dict(await self.connection.run_all(self._run, requests, progress, items=sources))

    async def decode(
        self, tokens: TokenSource | Iterable[TokenSource], progress: Progress | None, options: DecodeOptions
    ) -> Picture | list[Picture]:
        """The image of one code, or of several."""
        if calls.is_tokens(tokens):
            return await self._run(calls.decode(tokens, options))
        sources = cast("Iterable[TokenSource]", tokens)
        parts = batches(sources, max_items=(await self._service_limits()).max_images)
        requests = (calls.decode_batch(part, options) for part in parts)
        return await self.connection.run_all(self._run, requests, progress, items=sources)

    async def reconstruct(self, image: ImageSource) -> Reconstruction:
        """An image after encoding and decoding."""
        return await self._run(calls.reconstruct(await self._compute(image_bytes, image)))

    async def mix(
        self,
        tokens: Iterable[TokenSource],
        weights: Sequence[float] | None,
        positions: Sequence[int | None] | None,
        options: DecodeOptions,
    ) -> Mixed:
        """One image of several codes."""
        return await self._run(calls.mix(tokens, weights, positions, options))

    async def generate(
        self, class_: Class, n: int, progress: Progress | None, options: GenerateOptions
    ) -> list[Generated]:
        """New images of a class."""
        max_images = (await self._service_limits()).max_generate if n > 1 else 1
        requests = calls.generate(class_, n, max_images, options)
        return await self.connection.run_all(self._run, requests, progress, items=range(n))

    async def models(self) -> list[Model]:
        """The models of the service."""
        return await self._run(calls.models())

    async def classes(self, search: str | None) -> list[ImageClass]:
        """The classes of the generator."""
        return await self._run(calls.classes((await self.models())[0].id, search))

    async def _service_limits(self) -> Limits:
        if self._limits is None:
            self._limits = (await self.models())[0].limits
        return self._limits

    async def _encode_one(self, source: ImageSource, lookup_first: bool) -> Encoded:
        image = await self._compute(image_bytes, source)
        if lookup_first:
            for encoded in (await self._cached([await self._compute(image_digest, image)])).values():
                return encoded
        return await self._run(calls.encode(image))

    async def _encode_batch(self, batch: Batch[bytes]) -> list[Encoded]:
        return await self._run(calls.encode_batch(batch.items, batch.positions))

    async def _encode_unknown(self, batch: Batch[bytes]) -> list[Encoded]:
        """Looks up a batch, then uploads the images that are not cached, each of them once."""
        digests = await self._compute(lambda images: [image_digest(image) for image in images], batch.items)
        encoded = await self._cached(list(dict.fromkeys(digests)))
        uploads: dict[str, tuple[int, bytes]] = {}
        for digest, position, image in zip(digests, batch.positions, batch.items, strict=True):
            if digest not in encoded:
                uploads.setdefault(digest, (position, image))
        if uploads:
            positions, images = zip(*uploads.values(), strict=True)
            results = await self._run(calls.encode_batch(images, positions))
            encoded |= zip(uploads, results, strict=True)
        return [encoded[digest] for digest in digests]

    async def _cached(self, digests: Sequence[str]) -> dict[str, Encoded]:
        """Cached tokens by digest; none where the service does not offer look-ups."""
        try:
            found = await self._run(calls.lookup(digests))
        except NotFound:
            return {}
        return {digest: encoded for digest, encoded in found if encoded is not None}
