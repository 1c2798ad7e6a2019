"""Reads responses: errors, JSON documents and images become typed values."""

import base64
import json
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from .errors import TiTokError, UnexpectedAnswer, problem_error
from .results import (
    Encoded,
    EncodedLatents,
    Generated,
    GeneratorInfo,
    ImageClass,
    Limits,
    Mixed,
    Model,
    Picture,
    Reconstruction,
    Step,
)
from .retries import retry_after_seconds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Response:
    """A complete response."""

    status: int
    headers: httpx.Headers
    content: bytes

    def error(self) -> TiTokError:
        """The exception for a response whose status is not 200."""
        retry_after = retry_after_seconds(self.headers.get("retry-after"))
        if self.headers.get("content-type", "").startswith("application/problem+json"):
            document = self.json()
            if isinstance(document, dict):
                return problem_error(document, status=self.status, retry_after=retry_after)
        return self.unexpected(f"status {self.status}", retry_after=retry_after)

    def json(self) -> Any:
        """The JSON document. Raises ``UnexpectedAnswer`` if the body is not JSON."""
        try:
            return json.loads(self.content)
        except ValueError:
            raise self.unexpected("no JSON") from None

    def unexpected(self, reason: str, *, retry_after: float = 0.0) -> UnexpectedAnswer:
        """The exception for a response that is not part of this API."""
        message = f"not an answer of a TiTok service ({reason}): {self.content[:200]!r}"
        return UnexpectedAnswer(message, status=self.status, retry_after=retry_after)


def read_encoded(response: Response, count: int) -> list[Encoded]:
    """Tokens of ``count`` images."""
    document = response.json()
    if "shape" in document:
        raise response.unexpected("latents of a VAE, which has no codes: encode with latents=True")
    return [_build(Encoded, item, document) for item in _items(document, count)]


def read_latents(response: Response, count: int) -> list[EncodedLatents]:
    """Latents of ``count`` images."""
    document = response.json()
    return [_build(EncodedLatents, item, document, data=_bytes(item["latents"])) for item in _items(document, count)]


def read_lookup(response: Response, digests: Sequence[str]) -> list[tuple[str, Encoded | None]]:
    """Each digest of a look-up with its cached tokens, or None."""
    document = response.json()
    known = {item["sha256"]: _build(Encoded, item, document, cached=True) for item in document["data"]}
    if known.keys() | set(document["missing"]) != set(digests):
        raise ValueError(f"{len(known)} known and {len(document['missing'])} missing of {len(digests)} images")
    return [(digest, known.get(digest)) for digest in digests]


def read_reconstruction(response: Response) -> Reconstruction:
    """A reconstructed image with its quality."""
    document = response.json()
    without_tokens = {"tokens": (), "code": ""} if "latents" in document else {}
    return _build(Reconstruction, document, document["quality"], picture=_picture(document), **without_tokens)


def read_picture(response: Response) -> Picture:
    """An image file as the response body."""
    return Picture(data=response.content, content_type=response.headers["content-type"])


def read_pictures(response: Response, count: int) -> list[Picture]:
    """``count`` images in a JSON document."""
    return [_picture(item, "b64") for item in _items(response.json(), count)]


def read_mixed(response: Response) -> Mixed:
    """An image mixed from several codes."""
    document = response.json()
    return _build(Mixed, document, picture=_picture(document))


def read_generated(response: Response, first: int, count: int) -> list[Generated]:
    """``count`` generated images; ``first`` is the index of the first one among all images of the call."""
    document = response.json()
    return [read_generated_item(item, document, first=first) for item in _items(document, count)]


def read_generated_item(item: Mapping[str, Any], document: Mapping[str, Any], *, first: int = 0) -> Generated:
    """A generated image; ``document`` holds the members that all images of a response share."""
    return _build(Generated, item, document, index=first + item["index"], picture=_picture(item))


def read_step(item: Mapping[str, Any]) -> Step:
    """A sampling step."""
    return _build(Step, item, picture=_picture(item) if "image" in item else None)


def read_models(response: Response) -> list[Model]:
    """The models of a service."""
    return [
        _build(
            Model,
            entry,
            generator=None if entry["generator"] is None else _build(GeneratorInfo, entry["generator"]),
            limits=_build(Limits, entry["limits"]),
        )
        for entry in response.json()["data"]
    ]


def read_classes(response: Response) -> list[ImageClass]:
    """The classes of a generator."""
    return [_build(ImageClass, entry) for entry in response.json()["data"]]


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "tokens": tuple,
    "shape": tuple,
    "names": tuple,
    "original_size": lambda size: (size["width"], size["height"]),
}


def _build(kind: type[T], *documents: Mapping[str, Any], **values: Any) -> T:
    """A result whose fields are ``values``, or else members of the first document that has them.

    Members without a field are ignored: a newer service may send more.
    """
    members = ChainMap(*map(dict, documents))
    for member in fields(kind):
        if member.name not in values:
            value = members[member.name]
            values[member.name] = _CONVERSIONS[member.name](value) if member.name in _CONVERSIONS else value
    return kind(**values)


def _items(document: Any, count: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = document["data"]
    if [item["index"] for item in items] != list(range(count)):
        raise ValueError(f"{len(items)} items for {count} images")
    return items


def _picture(item: Mapping[str, Any], member: str = "image") -> Picture:
    return Picture(data=_bytes(item[member]), content_type=item["content_type"])


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
