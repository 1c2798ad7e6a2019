"""The calls of the API as values: the request to send, and how to read its response. No input or output happens here.

::

    arguments ──> Call(method, path, headers, body) ──> HTTP ──> Response ──> Call.result ──> typed values
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeGuard, TypeVar

from . import responses
from .errors import ServiceProblem, TiTokError
from .responses import Response
from .results import Encoded, Generated, ImageClass, Mixed, Model, Picture, Reconstruction, Tokenized

T = TypeVar("T")

Format: TypeAlias = Literal["jpeg", "png", "webp"]
Class: TypeAlias = int | str | None
"""A class by id or by name; None for unconditional generation."""

TokenSource: TypeAlias = str | Tokenized | Sequence[int]
"""A code, a result that has one, or K token ids."""

LOOKUP_DIGESTS = 1000
"""Most digests in one look-up request."""

_OCTETS = "application/octet-stream"
_PART_HEADER_BYTES = 256  # of a form's part, in addition to the file
_SEEDS = 2**32


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Consecutive items of a list; ``first`` is the position of the first one."""

    first: int
    items: list[T]

    @property
    def positions(self) -> range:
        """The items' positions in the list."""
        return range(self.first, self.first + len(self.items))


def batches(
    items: Iterable[T], *, max_items: int, max_bytes: int | None = None, size: Callable[[T], int] = lambda _: 0
) -> Iterator[Batch[T]]:
    """Splits items, in order, into the largest batches within the limits; an item that exceeds ``max_bytes`` is alone.

    Reads the iterable lazily, one item beyond the current batch.
    """
    batch: list[T] = []
    first = total = 0
    for item in items:
        length = size(item)
        if batch and (len(batch) == max_items or (max_bytes is not None and total + length > max_bytes)):
            yield Batch(first, batch)
            first, batch, total = first + len(batch), [], 0
        batch.append(item)
        total += length
    if batch:
        yield Batch(first, batch)


class DecodeOptions(TypedDict, total=False):
    """Options of decoded images. ``format`` is PNG by default. ``model`` and ``revision`` name the tokenizer that made
    the tokens (a result has them already); the service refuses those of another one.
    """

    format: Format
    quality: int
    model: str
    revision: str


class GenerateOptions(TypedDict, total=False):
    """Options of generated images; those left out come from the preset."""

    seed: int
    preset: str
    steps: int
    guidance_scale: float
    guidance_decay: Literal["constant", "linear", "power-cosine"]
    temperature: float
    format: Format
    quality: int


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request and the reader of its response.

    The response is JSON unless ``headers`` accept another media type. ``body`` holds httpx's arguments for the body or
    the query. ``positions`` are those of the request's images in the
    caller's list.
    """

    path: str
    read: Callable[[Response], T]
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    positions: Sequence[int] | None = None

    def result(self, response: Response) -> T:
        """The values in the response. Raises ``ServiceProblem`` or ``UnexpectedAnswer``."""
        try:
            if response.status != 200:
                raise response.error()
            return self.read(response)
        except TiTokError as error:
            if isinstance(error, ServiceProblem) and self.positions is not None:
                error.set_index(self.positions)
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise response.unexpected(f"{type(error).__name__}: {error}") from error


def encode(image: bytes) -> Call[Encoded]:
    """Encodes one image, sent as the body."""
    return Call(
        path="/v1/encode",
        headers={"Content-Type": _OCTETS},
        body={"content": image},
        read=lambda response: responses.read_encoded(response, 1)[0],
    )


def encode_batch(images: Sequence[bytes], positions: Sequence[int]) -> Call[list[Encoded]]:
    """Encodes several images, sent as the files of a form."""
    return Call(
        path="/v1/encode",
        body={"files": [("image", (str(index), image, _OCTETS)) for index, image in enumerate(images)]},
        read=partial(responses.read_encoded, count=len(images)),
        positions=positions,
    )


def upload_size(image: bytes) -> int:
    """Bytes that an image adds to a form."""
    return len(image) + _PART_HEADER_BYTES


def lookup(digests: Sequence[str]) -> Call[list[tuple[str, Encoded | None]]]:
    """Looks up cached tokens by the images' SHA-256."""
    return Call(
        path="/v1/codes:lookup",
        body={"json": {"sha256": digests}},
        read=partial(responses.read_lookup, digests=digests),
    )


def reconstruct(image: bytes) -> Call[Reconstruction]:
    """Encodes and decodes an image."""
    return Call(
        path="/v1/reconstruct",
        headers={"Content-Type": _OCTETS},
        body={"content": image},
        read=responses.read_reconstruction,
    )


def decode(tokens: TokenSource, options: DecodeOptions) -> Call[Picture]:
    """Decodes one image, which is the response body."""
    document = {"format": "png", **options, **_tokens([tokens], options)}
    headers = {"Accept": f"image/{document.pop('format')}"}
    return Call(path="/v1/decode", headers=headers, body={"json": document}, read=responses.read_picture)


def decode_batch(batch: Batch[TokenSource], options: DecodeOptions) -> Call[list[Picture]]:
    """Decodes several images into one JSON document."""
    return Call(
        path="/v1/decode",
        body={"json": {"format": "png", **options, **_tokens(batch.items, options)}},
        read=partial(responses.read_pictures, count=len(batch.items)),
        positions=batch.positions,
    )


def mix(
    tokens: Iterable[TokenSource],
    weights: Sequence[float] | None,
    positions: Sequence[int | None] | None,
    options: DecodeOptions,
) -> Call[Mixed]:
    """Mixes several codes into one image."""
    document = {"format": "png", **options, **_tokens(list(tokens), options)}
    if weights is not None:
        document["weights"] = list(weights)
    if positions is not None:
        document["positions"] = list(positions)
    return Call(path="/v1/mix", body={"json": document}, read=responses.read_mixed)


def generate(class_: Class, n: int, max_images: int, options: GenerateOptions) -> Iterator[Call[list[Generated]]]:
    """Generates ``n`` images with consecutive seeds, at most ``max_images`` in a request."""
    document = _generate_document(class_, n, options)
    for first in range(0, n, max_images):
        count = min(max_images, n - first)
        yield Call(
            path="/v1/generate",
            body={"json": {**document, "n": count, "seed": document["seed"] + first}},
            read=partial(responses.read_generated, first=first, count=count),
        )


def generate_events(class_: Class, n: int, preview: bool, options: GenerateOptions) -> Call[None]:
    """Generates ``n`` images as a stream of events, which the caller reads."""
    return Call(
        path="/v1/generate",
        headers={"Accept": "text/event-stream"},
        body={"json": {**_generate_document(class_, n, options), "preview": preview}},
        read=lambda _: None,
    )


def models() -> Call[list[Model]]:
    """Lists the models."""
    return Call(method="GET", path="/v1/models", read=responses.read_models)


def classes(model: str, search: str | None) -> Call[list[ImageClass]]:
    """Lists the classes of a model's generator."""
    query = {} if search is None else {"q": search}
    return Call(method="GET", path=f"/v1/models/{model}/classes", body={"params": query}, read=responses.read_classes)


def is_tokens(source: Any) -> TypeGuard[TokenSource]:
    """Whether the source is one image's tokens, and not a list of several images' tokens."""
    if isinstance(source, str | Tokenized):
        return True
    if hasattr(source, "ndim"):
        return bool(source.ndim == 1)
    return isinstance(source, Sequence) and len(source) > 0 and hasattr(source[0], "__index__")


def _generate_document(class_: Class, n: int, options: GenerateOptions) -> dict[str, Any]:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    # The client draws the seed, so that every attempt of a request makes the same images.
    return {"seed": secrets.randbelow(_SEEDS), **options, "class": class_, "n": n}


def _tokens(sources: Sequence[TokenSource], options: DecodeOptions) -> dict[str, Any]:
    tokenizers = {(source.model, source.revision) for source in sources if isinstance(source, Tokenized)}
    if len(tokenizers) > 1:
        raise ValueError(f"the tokens come from different tokenizers: {sorted(tokenizers)}")
    texts = [source.code if isinstance(source, Tokenized) else source for source in sources]
    if all(isinstance(text, str) for text in texts):
        document: dict[str, Any] = {"codes": texts}
    elif any(isinstance(text, str) for text in texts):
        raise TypeError("a list holds either codes or lists of token ids, not both")
    else:
        document = {"tokens": [[int(token) for token in row] for row in texts]}
    for model, revision in tokenizers:
        document |= {"model": options.get("model", model), "revision": options.get("revision", revision)}
    return document
