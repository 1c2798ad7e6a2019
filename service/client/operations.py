"""The operations of both clients: one image or a list, split into requests, with or without a look-up first."""

from collections.abc import Iterable, Sequence
from typing import Unpack, cast, overload

from . import calls
from .calls import Batch, Class, DecodeOptions, GenerateOptions, TokenSource, batches
from .connection import Connection, Progress
from .errors import NotFound
from .images import ImageSource, image_bytes, image_digest, is_image
from .results import Encoded, Generated, ImageClass, Limits, Mixed, Model, Picture, Reconstruction


class Operations:
    """The calls of both clients; ``AsyncTiTokClient`` inherits them, ``TiTokClient`` runs them to their end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._limits: Limits | None = None

    # A string is a path, although its type is also that of an iterable of strings.
    @overload
    async def encode(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, lookup_first: bool = False, progress: Progress | None = None
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
        """The tokens of one image, or of several in their order; an iterable is read as needed.

        ``lookup_first`` looks images up by their digests and uploads only those that are not cached; all of them if the
        service does not offer look-ups. A broken image fails the call: ``ServiceProblem.index`` is its position.
        """
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
        return await self._connection.run_all(function, parts, progress, items=sources)

    async def lookup(
        self, images: ImageSource | Iterable[ImageSource], *, progress: Progress | None = None
    ) -> dict[str, Encoded | None]:
        """The cached tokens of images, by the SHA-256 of their files in hexadecimal; None for those that are not cached.

        Images are as for ``encode``, or digests: a string of 64 hexadecimal digits is one. Raises ``NotFound`` if the
        service does not offer look-ups.
        """
        sources = [images] if is_image(images) else cast("Iterable[ImageSource]", images)
        parts = batches(map(image_digest, sources), max_items=calls.LOOKUP_DIGESTS)
        requests = (calls.lookup(part.items) for part in parts)
        return dict(await self._connection.run_all(self._connection.run, requests, progress, items=sources))

    @overload
    async def decode(  # type: ignore[overload-overlap]
        self, tokens: TokenSource, *, progress: Progress | None = None, **options: Unpack[DecodeOptions]
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
        """The image of a code, of a result that has one, or of K token ids; or the images of several, in their order."""
        if calls.is_tokens(tokens):
            return await self._connection.run(calls.decode(tokens, options))
        sources = cast("Iterable[TokenSource]", tokens)
        parts = batches(sources, max_items=(await self._service_limits()).max_images)
        requests = (calls.decode_batch(part, options) for part in parts)
        return await self._connection.run_all(self._connection.run, requests, progress, items=sources)

    async def reconstruct(self, image: ImageSource) -> Reconstruction:
        """An image after encoding and decoding, with PSNR and SSIM."""
        data = await self._connection.transport.compute(image_bytes, image)
        return await self._connection.run(calls.reconstruct(data))

    async def mix(
        self,
        tokens: Iterable[TokenSource],
        *,
        weights: Sequence[float] | None = None,
        positions: Sequence[int | None] | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Mixed:
        """One image of several codes: their weighted mean in codebook space, or the token of one code per position."""
        return await self._connection.run(calls.mix(tokens, weights, positions, options))

    async def generate(
        self, class_: Class, *, n: int = 1, progress: Progress | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generated]:
        """``n`` new images of a class. Image i has the seed ``seed`` + i; ``seed`` is random by default."""
        max_images = (await self._service_limits()).max_generate if n > 1 else 1
        requests = calls.generate(class_, n, max_images, options)
        return await self._connection.run_all(self._connection.run, requests, progress, items=range(n))

    async def models(self) -> list[Model]:
        """The models of the service, with the limits of a request."""
        return await self._connection.run(calls.models())

    async def classes(self, search: str | None = None) -> list[ImageClass]:
        """The classes of the generator; with ``search``, those with similar names, most similar first."""
        return await self._connection.run(calls.classes((await self.models())[0].id, search))

    async def _service_limits(self) -> Limits:
        if self._limits is None:
            self._limits = (await self.models())[0].limits
        return self._limits

    async def _encode_one(self, source: ImageSource, lookup_first: bool) -> Encoded:
        image = await self._connection.transport.compute(image_bytes, source)
        if lookup_first:
            for encoded in (
                await self._cached([await self._connection.transport.compute(image_digest, image)])
            ).values():
                return encoded
        return await self._connection.run(calls.encode(image))

    async def _encode_batch(self, batch: Batch[bytes]) -> list[Encoded]:
        return await self._connection.run(calls.encode_batch(batch.items, batch.positions))

    async def _encode_unknown(self, batch: Batch[bytes]) -> list[Encoded]:
        """Looks up a batch, then uploads the images that are not cached, each of them once."""
        digests = await self._connection.transport.compute(_digests, batch.items)
        encoded = await self._cached(list(dict.fromkeys(digests)))
        uploads: dict[str, tuple[int, bytes]] = {}
        for digest, position, image in zip(digests, batch.positions, batch.items, strict=True):
            if digest not in encoded:
                uploads.setdefault(digest, (position, image))
        if uploads:
            positions, images = zip(*uploads.values(), strict=True)
            results = await self._connection.run(calls.encode_batch(images, positions))
            encoded |= zip(uploads, results, strict=True)
        return [encoded[digest] for digest in digests]

    async def _cached(self, digests: Sequence[str]) -> dict[str, Encoded]:
        """Cached tokens by digest; none where the service does not offer look-ups."""
        try:
            found = await self._connection.run(calls.lookup(digests))
        except NotFound:
            return {}
        return {digest: encoded for digest, encoded in found if encoded is not None}


def _digests(images: Iterable[bytes]) -> list[str]:
    return [image_digest(image) for image in images]
