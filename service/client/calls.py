"""Every call of the API as values: the request it sends, and what it makes of the answer. Nothing here touches a network.

::

    arguments ──> Call(method, path, headers, body) ──> either client sends it ──> Answer ──> Call.result ──> typed values
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeGuard, TypeVar

from service.client.answers import (
    Answer,
    read_classes,
    read_encoded,
    read_generated,
    read_known,
    read_mixed,
    read_models,
    read_picture,
    read_pictures,
    read_reconstruction,
)
from service.client.batches import Batch
from service.client.errors import ServiceProblem, TiTokError
from service.client.results import (
    Encoded,
    Generated,
    ImageClass,
    Mixed,
    Model,
    Picture,
    Reconstruction,
    Tokenized,
)

__all__ = [
    "EVENT_STREAM",
    "LOOKUP_DIGESTS",
    "Call",
    "Class",
    "DecodeOptions",
    "Format",
    "GenerateOptions",
    "TokenSource",
    "classes",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
    "generate",
    "generate_events",
    "is_tokens",
    "lookup",
    "mix",
    "models",
    "reconstruct",
    "upload_size",
]

T = TypeVar("T")

Format: TypeAlias = Literal["jpeg", "png", "webp"]
Class: TypeAlias = int | str | None
"""A class by id or by name; None for an image of no class."""

TokenSource: TypeAlias = str | Tokenized | Sequence[int]
"""A code, anything that has one, or K token ids."""

EVENT_STREAM = "text/event-stream"
LOOKUP_DIGESTS = 1000
"""How many digests one look-up takes."""

_OCTETS = "application/octet-stream"
_PART_BYTES = 256  # of a form beside each file's own
_SEEDS = 2**32


class DecodeOptions(TypedDict, total=False):
    """What may be said of pictures: PNG unless ``format`` says otherwise. ``model`` and ``revision`` say whose the tokens
    are (a result knows that itself); another tokenizer's are refused.
    """

    format: Format
    quality: int
    model: str
    revision: str


class GenerateOptions(TypedDict, total=False):
    """What may be said of new images beside their class; what is not said comes from the preset."""

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
    """A request; ``body`` holds httpx's arguments for it. ``places`` are those of its images in the caller's list."""

    method: str = "GET"
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Answer], T]
    places: Sequence[int] | None = None

    def result(self, answer: Answer) -> T:
        """What the answer holds. Raises the error that it stands for."""
        try:
            answer.check()
            return self.read(answer)
        except TiTokError as error:
            if isinstance(error, ServiceProblem) and self.places is not None:
                error.blame(self.places)
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise answer.unexpected(f"{type(error).__name__}: {error}") from error


def encode(image: bytes) -> Call[Encoded]:
    """One image as the body itself."""
    return Call(
        method="POST",
        path="/v1/encode",
        headers={"Content-Type": _OCTETS},
        body={"content": image},
        read=lambda answer: read_encoded(answer, 1)[0],
    )


def encode_batch(images: Sequence[bytes], places: Sequence[int]) -> Call[list[Encoded]]:
    """Several images as the files of a form."""
    return Call(
        method="POST",
        path="/v1/encode",
        body={"files": [("image", (str(index), image, _OCTETS)) for index, image in enumerate(images)]},
        read=lambda answer: read_encoded(answer, len(images)),
        places=places,
    )


def lookup(digests: Sequence[str]) -> Call[list[tuple[str, Encoded | None]]]:
    """What is known of images, by the digests of their files."""
    return Call(
        method="POST",
        path="/v1/codes:lookup",
        body={"json": {"sha256": list(digests)}},
        read=lambda answer: read_known(answer, digests),
    )


def upload_size(image: bytes) -> int:
    """Bytes of a request that an image takes up."""
    return len(image) + _PART_BYTES


def reconstruct(image: bytes) -> Call[Reconstruction]:
    """One image there and back."""
    return Call(
        method="POST",
        path="/v1/reconstruct",
        headers={"Content-Type": _OCTETS, "Accept": "application/json"},
        body={"content": image},
        read=read_reconstruction,
    )


def decode(tokens: TokenSource, options: DecodeOptions) -> Call[Picture]:
    """One picture as the answer itself."""
    document: dict[str, Any] = {**options, **_tokens([tokens], options)}
    image_format = document.pop("format", "png")
    return Call(
        method="POST",
        path="/v1/decode",
        headers={"Accept": f"image/{image_format}"},
        body={"json": document},
        read=read_picture,
    )


def decode_batch(batch: Batch[TokenSource], options: DecodeOptions) -> Call[list[Picture]]:
    """Several pictures in one answer."""
    return Call(
        method="POST",
        path="/v1/decode",
        headers={"Accept": "application/json"},
        body={"json": {"format": "png", **options, **_tokens(batch.items, options)}},
        read=lambda answer: read_pictures(answer, len(batch.items)),
        places=batch.places,
    )


def mix(
    tokens: Iterable[TokenSource],
    weights: Sequence[float] | None,
    positions: Sequence[int | None] | None,
    options: DecodeOptions,
) -> Call[Mixed]:
    """One picture of several codes."""
    document = {"format": "png", **options, **_tokens(list(tokens), options)}
    if weights is not None:
        document["weights"] = list(weights)
    if positions is not None:
        document["positions"] = list(positions)
    return Call(
        method="POST", path="/v1/mix", headers={"Accept": "application/json"}, body={"json": document}, read=read_mixed
    )


def generate(class_: Class, n: int, max_images: int, options: GenerateOptions) -> Iterator[Call[list[Generated]]]:
    """``n`` new images, at most ``max_images`` a request, with seeds one after another."""
    document = _generate_document(class_, n, options)
    for first in range(0, n, max_images):
        count = min(max_images, n - first)
        yield Call(
            method="POST",
            path="/v1/generate",
            headers={"Accept": "application/json"},
            body={"json": {**document, "n": count, "seed": document["seed"] + first}},
            read=partial(read_generated, first=first, count=count),
        )


def generate_events(class_: Class, n: int, preview: bool, options: GenerateOptions) -> Call[None]:
    """``n`` new images of one request, as events; they are read while they come."""
    document = _generate_document(class_, n, options)
    return Call(
        method="POST",
        path="/v1/generate",
        headers={"Accept": EVENT_STREAM},
        body={"json": {**document, "preview": preview}},
        read=lambda _: None,
    )


def models() -> Call[list[Model]]:
    """What is served."""
    return Call(path="/v1/models", read=read_models)


def classes(model: str, search: str | None) -> Call[list[ImageClass]]:
    """The classes of a generator."""
    return Call(
        path=f"/v1/models/{model}/classes",
        body={"params": {} if search is None else {"q": search}},
        read=read_classes,
    )


def is_tokens(source: Any) -> TypeGuard[TokenSource]:
    """Whether this stands for one image, and not for several of them."""
    if isinstance(source, str | Tokenized):
        return True
    if hasattr(source, "ndim"):
        return bool(source.ndim == 1)
    return isinstance(source, Sequence) and len(source) > 0 and hasattr(source[0], "__index__")


def _generate_document(class_: Class, n: int, options: GenerateOptions) -> dict[str, Any]:
    if n < 1:
        raise ValueError(f"{n} images cannot be made")
    # A seed drawn here, and not by the service, so that every try of a request makes the same images.
    return {"seed": secrets.randbelow(_SEEDS), **options, "class": class_, "n": n}


def _tokens(sources: Sequence[TokenSource], options: DecodeOptions) -> dict[str, Any]:
    owners = {(source.model, source.revision) for source in sources if isinstance(source, Tokenized)}
    if len(owners) > 1:
        raise ValueError(f"these tokens are of different tokenizers: {sorted(owners)}")
    texts = [source.code if isinstance(source, Tokenized) else source for source in sources]
    if all(isinstance(text, str) for text in texts):
        document: dict[str, Any] = {"codes": texts}
    elif any(isinstance(text, str) for text in texts):
        raise TypeError("codes and lists of token ids do not go together; give the one or the other")
    else:
        document = {"tokens": [[int(token) for token in row] for row in texts]}
    for model, revision in owners:
        document |= {"model": options.get("model", model), "revision": options.get("revision", revision)}
    return document
