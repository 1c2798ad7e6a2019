"""The calls of the API as values: the request to send, and how to read its response. No input or output happens here.

::

    arguments ──> Call(method, path, headers, body) ──> HTTP ──> Response ──> Call.result ──> typed values
"""

import base64
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeGuard, TypeVar, cast

from .errors import ServiceProblem, TiTokError
from .responses import Response
from .results import Latents, Tokenized

T = TypeVar("T")

Format: TypeAlias = Literal["jpeg", "png", "webp"]
Class: TypeAlias = int | str | None
"""A class by id or by name; None for unconditional generation."""

Dtype: TypeAlias = Literal["float32", "float16"]

TokenSource: TypeAlias = str | Tokenized | Latents | Sequence[int]
"""A code, a result that has one, latents, or token ids: K, of a prefix-decodable tokenizer also fewer."""


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
    token_temperature: float
    format: Format
    quality: int


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request and the reader of its response.

    The response is JSON unless ``headers`` accept another media type. ``body`` holds httpx's arguments for the body or
    the query. ``positions`` are those of the request's images in the caller's list.
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


def is_tokens(source: Any) -> TypeGuard[TokenSource]:
    """Whether the source is one image's tokens, and not a list of several images' tokens."""
    if isinstance(source, str | Tokenized | Latents):
        return True
    if _is_float_array(source):
        return bool(source.ndim == 2)
    if hasattr(source, "ndim"):
        return bool(source.ndim == 1)
    return isinstance(source, Sequence) and len(source) > 0 and hasattr(source[0], "__index__")


def generate_document(class_: Class, n: int, options: GenerateOptions) -> dict[str, Any]:
    """The JSON body that asks for ``n`` images. The client draws the seed, so that every attempt makes the same images."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return {"seed": secrets.randbelow(2**32), **options, "class": class_, "n": n}


def decode_document(sources: Sequence[TokenSource], options: DecodeOptions) -> dict[str, Any]:
    """The JSON body that asks for images of these tokens.

    Raises ``ValueError`` for tokens of different tokenizers, and ``TypeError`` for ids that are not integers.
    """
    made = [source for source in sources if isinstance(source, Tokenized | Latents) and source.model is not None]
    tokenizers = {(source.model, source.revision) for source in made}
    if len(tokenizers) > 1:
        raise ValueError(f"the tokens come from different tokenizers: {sorted(tokenizers)}")
    texts = [source.code if isinstance(source, Tokenized) else source for source in sources]
    if all(isinstance(text, str) for text in texts):
        document: dict[str, Any] = {"codes": texts}
    elif all(isinstance(source, Latents) or _is_float_array(source) for source in sources):
        document = _latents_document(sources)
    elif any(isinstance(text, str | Latents) for text in texts):
        raise TypeError("a list holds either codes, lists of token ids, or latents")
    else:
        rows = cast("list[Sequence[int]]", texts)
        document = {"tokens": [[index(token) for token in row] for row in rows]}
    for model, revision in tokenizers:
        document |= {"model": model, "revision": revision}
    return {"format": "png", **document, **options}


def _latents_document(sources: Sequence[Any]) -> dict[str, Any]:
    """The JSON members of latents: results, or arrays [K, C]. Raises ``ValueError`` for several shapes or number formats."""
    latents = [source if isinstance(source, Latents) else _latents_of(source) for source in sources]
    if len(formats := {(each.shape, each.dtype) for each in latents}) > 1:
        raise ValueError(f"the latents have different shapes or number formats: {sorted(formats)}")
    [(shape, dtype)] = formats
    texts = [base64.b64encode(each.data).decode() for each in latents]
    return {"latents": texts, "dtype": dtype, "shape": list(shape)}


def _latents_of(array: Any) -> Latents:
    dtype: Dtype = "float16" if array.dtype.itemsize == 2 else "float32"
    data = array.astype("<f2" if dtype == "float16" else "<f4").tobytes()
    return Latents(data=data, shape=array.shape, dtype=dtype)


def _is_float_array(source: Any) -> bool:
    return getattr(getattr(source, "dtype", None), "kind", None) == "f"
