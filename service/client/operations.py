"""The operations of both clients: one image or a list, split into requests, with or without a look-up first."""

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, Unpack, overload

from . import responses
from .calls import (
    Batch,
    Call,
    Class,
    DecodeOptions,
    Dtype,
    GenerateOptions,
    TokenSource,
    batches,
    decode_document,
    generate_document,
    is_tokens,
)
from .connection import Connection, Progress
from .errors import NotFound
from .images import ImageSource, image_bytes, image_digest, is_image
from .responses import Response
from .results import Encoded, EncodedLatents, Generated, ImageClass, Limits, Mixed, Model, Picture, Reconstruction

T = TypeVar("T")
S = TypeVar("S")

_IMAGES = "images: paths, bytes, open binary files, Pillow images or arrays of pixels"
_LOOKUP_DIGESTS = 1000  # most digests in one look-up request
_OCTETS = "application/octet-stream"
_PART_HEADER_BYTES = 256  # of a form's part, in addition to the file


class Operations:
    """The calls of both clients; ``AsyncTiTokClient`` inherits them, ``TiTokClient`` runs them to their end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._limits: Limits | None = None

    # A string is a path, although its type is also that of an iterable of strings.
    @overload
    async def encode(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        *,
        length: int | None = None,
        lookup_first: bool = False,
        progress: Progress | None = None,
    ) -> Encoded: ...

    @overload
    async def encode(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        length: int | None = None,
        lookup_first: bool = False,
        progress: Progress | None = None,
    ) -> list[Encoded]: ...

    @overload
    async def encode(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        *,
        latents: Literal[True],
        dtype: Dtype = "float32",
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> EncodedLatents: ...

    @overload
    async def encode(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        latents: Literal[True],
        dtype: Dtype = "float32",
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> list[EncodedLatents]: ...

    async def encode(
        self,
        images: ImageSource | Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        latents: bool = False,
        dtype: Dtype = "float32",
        seed: int | None = None,
        length: int | None = None,
        lookup_first: bool = False,
        progress: Progress | None = None,
    ) -> Encoded | EncodedLatents | list[Encoded] | list[EncodedLatents]:
        """The tokens of one image, or of several in their order; an iterable is read as needed,
        an asynchronous one by ``AsyncTiTokClient``. Raises ``TypeError`` for anything else.

        ``length`` asks for the first tokens of each image only, which a prefix-decodable tokenizer decodes.
        ``lookup_first`` looks images up by their digests and uploads only those that are not cached; all of them if the
        service does not offer look-ups. A broken image fails the call: ``ServiceProblem.index`` is its position.

        ``latents`` asks for vectors instead: the tokens of a VAE, or those before quantization of another tokenizer. With
        ``seed`` a VAE's posterior is sampled, for image i with ``seed`` + i; by default they are its mean.
        """
        if latents:
            return await self._encode_latents(images, dtype, seed, progress)
        if is_image(images):
            return await self._encode_one(images, lookup_first, length)
        function = partial(self._encode_unknown if lookup_first else self._encode_all, length=length)
        return await self._run_batches(function, images, progress)

    async def _encode_latents(
        self,
        images: ImageSource | Iterable[ImageSource] | AsyncIterable[ImageSource],
        dtype: Dtype,
        seed: int | None,
        progress: Progress | None,
    ) -> EncodedLatents | list[EncodedLatents]:
        def query(first: int) -> dict[str, Any]:
            return {"latents": "true", "dtype": dtype, **({} if seed is None else {"seed": seed + first})}

        async def encode_batch(batch: Batch[bytes]) -> list[EncodedLatents]:
            read = partial(responses.read_latents, count=len(batch.items))
            return await self._connection.run(_form(batch.items, batch.positions, read, query(batch.first)))

        if not is_image(images):
            return await self._run_batches(encode_batch, images, progress)
        image = await self._connection.transport.compute(image_bytes, images)
        read = partial(responses.read_latents, count=1)
        (encoded,) = await self._connection.run(_upload("/v1/encode", image, read, query(0)))
        return encoded

    async def _run_batches(
        self,
        function: Callable[[Batch[bytes]], Coroutine[Any, Any, list[T]]],
        images: object,
        progress: Progress | None,
    ) -> list[T]:
        """The results of a function of the images of an iterable, in batches within the service's limits."""
        with self._connection.iterated(images, _IMAGES) as sources:
            limits = await self._service_limits()
            parts = batches(
                _each(image_bytes, sources),
                max_items=limits.max_images,
                max_bytes=limits.max_body_bytes,
                size=lambda image: len(image) + _PART_HEADER_BYTES,
            )
            return await self._connection.run_all(function, parts, progress, items=sources)

    async def lookup(
        self,
        images: ImageSource | Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        progress: Progress | None = None,
    ) -> dict[str, Encoded | None]:
        """The cached tokens of images, by the SHA-256 of their files in hexadecimal; None for those that are not cached.

        Images are as for ``encode``, or digests: a string of 64 hexadecimal digits is one. Raises ``NotFound`` if the
        service does not offer look-ups.
        """
        with self._connection.iterated([images] if is_image(images) else images, _IMAGES) as sources:
            parts = (part.items for part in batches(_each(image_digest, sources), max_items=_LOOKUP_DIGESTS))
            return dict(await self._connection.run_all(self._lookup, parts, progress, items=sources))

    @overload
    async def decode(  # type: ignore[overload-overlap]
        self, tokens: TokenSource, *, progress: Progress | None = None, **options: Unpack[DecodeOptions]
    ) -> Picture: ...

    @overload
    async def decode(
        self,
        tokens: Iterable[TokenSource] | AsyncIterable[TokenSource],
        *,
        progress: Progress | None = None,
        **options: Unpack[DecodeOptions],
    ) -> list[Picture]: ...

    async def decode(
        self,
        tokens: TokenSource | Iterable[TokenSource] | AsyncIterable[TokenSource],
        *,
        progress: Progress | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Picture | list[Picture]:
        """The image of a code, of a result that has one, or of token ids; of a VAE's latents, as results or as arrays of
        floats [K, C]; or the images of several, in their order.
        """
        if is_tokens(tokens):
            document = decode_document([tokens], options)
            headers = {"Accept": f"image/{document.pop('format')}"}
            return await self._connection.run(
                Call(path="/v1/decode", headers=headers, body={"json": document}, read=responses.read_picture)
            )
        with self._connection.iterated(tokens, "codes, results, lists of token ids or latents") as sources:
            calls = (
                Call(
                    path="/v1/decode",
                    body={"json": decode_document(part.items, options)},
                    read=partial(responses.read_pictures, count=len(part.items)),
                    positions=part.positions,
                )
                for part in batches(sources, max_items=(await self._service_limits()).max_images)
            )
            return await self._connection.run_all(self._connection.run, calls, progress, items=sources)

    async def reconstruct(self, image: ImageSource, *, length: int | None = None) -> Reconstruction:
        """An image after encoding and decoding, with PSNR and SSIM; of its first ``length`` tokens, if that is given."""
        data = await self._connection.transport.compute(image_bytes, image)
        call = _upload("/v1/reconstruct", data, responses.read_reconstruction, _query(length))
        return await self._connection.run(call)

    async def mix(
        self,
        tokens: Iterable[TokenSource],
        *,
        weights: Sequence[float] | None = None,
        positions: Sequence[int | None] | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Mixed:
        """One image of several codes: their weighted mean in codebook space, or the token of one code per position."""
        document = decode_document(list(tokens), options)
        if weights is not None:
            document["weights"] = list(weights)
        if positions is not None:
            document["positions"] = list(positions)
        return await self._connection.run(Call(path="/v1/mix", body={"json": document}, read=responses.read_mixed))

    async def generate(
        self, class_: Class, *, n: int = 1, progress: Progress | None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generated]:
        """``n`` new images of a class. Image i has the seed ``seed`` + i; ``seed`` is random by default."""
        max_images = (await self._service_limits()).max_generate if n > 1 else 1
        document = generate_document(class_, n, options)
        calls = (
            Call(
                path="/v1/generate",
                body={"json": {**document, "n": count, "seed": document["seed"] + first}},
                read=partial(responses.read_generated, first=first, count=count),
            )
            for first in range(0, n, max_images)
            for count in [min(max_images, n - first)]
        )
        return await self._connection.run_all(self._connection.run, calls, progress, items=range(n))

    async def models(self) -> list[Model]:
        """The models of the service, with the limits of a request."""
        return await self._connection.run(Call(method="GET", path="/v1/models", read=responses.read_models))

    async def classes(self, search: str | None = None) -> list[ImageClass]:
        """The classes of the generator; with ``search``, those with similar names, most similar first."""
        path = f"/v1/models/{(await self.models())[0].id}/classes"
        query = {} if search is None else {"q": search}
        return await self._connection.run(
            Call(method="GET", path=path, body={"params": query}, read=responses.read_classes)
        )

    async def _service_limits(self) -> Limits:
        if self._limits is None:
            self._limits = (await self.models())[0].limits
        return self._limits

    async def _encode_one(self, source: ImageSource, lookup_first: bool, length: int | None) -> Encoded:
        image = await self._connection.transport.compute(image_bytes, source)
        if lookup_first:
            digest = await self._connection.transport.compute(image_digest, image)
            for encoded in (await self._cached([digest], length)).values():
                return encoded
        read = partial(responses.read_encoded, count=1)
        (encoded,) = await self._connection.run(_upload("/v1/encode", image, read, _query(length)))
        return encoded

    async def _encode_all(self, batch: Batch[bytes], *, length: int | None) -> list[Encoded]:
        return await self._encode_form(batch.items, batch.positions, length)

    async def _encode_form(
        self, images: Sequence[bytes], positions: Sequence[int], length: int | None
    ) -> list[Encoded]:
        read = partial(responses.read_encoded, count=len(images))
        return await self._connection.run(_form(images, positions, read, _query(length)))

    async def _encode_unknown(self, batch: Batch[bytes], *, length: int | None) -> list[Encoded]:
        """Looks up a batch, then uploads the images that are not cached, each of them once."""
        digests = await self._connection.transport.compute(lambda images: list(map(image_digest, images)), batch.items)
        encoded = await self._cached(list(dict.fromkeys(digests)), length)
        uploads: dict[str, tuple[int, bytes]] = {}
        for digest, position, image in zip(digests, batch.positions, batch.items, strict=True):
            if digest not in encoded:
                uploads.setdefault(digest, (position, image))
        if uploads:
            positions, images = zip(*uploads.values(), strict=True)
            results = await self._encode_form(images, positions, length)
            encoded |= zip(uploads, results, strict=True)
        return [encoded[digest] for digest in digests]

    async def _lookup(self, digests: Sequence[str], length: int | None = None) -> list[tuple[str, Encoded | None]]:
        body = {"json": {"sha256": digests}, "params": _query(length)}
        read = partial(responses.read_lookup, digests=digests)
        return await self._connection.run(Call(path="/v1/codes:lookup", body=body, read=read))

    async def _cached(self, digests: Sequence[str], length: int | None) -> dict[str, Encoded]:
        """Cached tokens by digest; none where the service does not offer look-ups."""
        try:
            found = await self._lookup(digests, length)
        except NotFound:
            return {}
        return {digest: encoded for digest, encoded in found if encoded is not None}


def _form(
    images: Sequence[bytes], positions: Sequence[int], read: Callable[[Response], T], query: Mapping[str, Any]
) -> Call[T]:
    """A call that encodes several images, sent as the files of a form."""
    files = [("image", (str(index), image, _OCTETS)) for index, image in enumerate(images)]
    return Call(path="/v1/encode", body={"files": files, "params": query}, read=read, positions=positions)


def _upload(path: str, image: bytes, read: Callable[[Response], T], query: Mapping[str, Any]) -> Call[T]:
    """A call whose body is one image file."""
    body = {"content": image, "params": query}
    return Call(path=path, headers={"Content-Type": _OCTETS}, body=body, read=read)


def _query(length: int | None) -> dict[str, int]:
    return {} if length is None else {"length": length}


def _each(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """The function of each item; its errors name the item."""
    for index, item in enumerate(items):
        try:
            yield function(item)
        except (OSError, TypeError, ValueError) as error:
            error.add_note(f"item {index} of the list")
            raise
