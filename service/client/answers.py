"""What an answer holds: its errors, its documents, its pictures, as typed values."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import httpx

from service.client.errors import TiTokError, UnexpectedAnswer, problem_error
from service.client.results import (
    Encoded,
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
from service.client.retrying import retry_after_seconds

__all__ = [
    "Answer",
    "read_classes",
    "read_encoded",
    "read_generated",
    "read_generated_item",
    "read_known",
    "read_mixed",
    "read_models",
    "read_picture",
    "read_pictures",
    "read_reconstruction",
    "read_step",
]


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    content: bytes

    def check(self) -> None:
        """Raises the error that an answer other than 200 stands for."""
        if self.status != httpx.codes.OK:
            raise self.error()

    def error(self) -> TiTokError:
        """The error that an answer other than 200 stands for."""
        retry_after = retry_after_seconds(self.headers.get("retry-after"))
        if self.headers.get("content-type", "").startswith("application/problem+json"):
            document = self.json()
            if isinstance(document, dict):
                return problem_error(document, status=self.status, retry_after=retry_after)
        return self.unexpected(f"status {self.status}", retry_after=retry_after)

    def json(self) -> Any:
        """The document. Raises ``UnexpectedAnswer`` if there is none."""
        try:
            return json.loads(self.content)
        except ValueError:
            raise self.unexpected("no JSON") from None

    def unexpected(self, what: str, *, retry_after: float = 0.0) -> UnexpectedAnswer:
        """The error of an answer that this API does not give."""
        return UnexpectedAnswer(
            f"not an answer of a TiTok service ({what}): {self.content[:200]!r}",
            status=self.status,
            retry_after=retry_after,
        )


def read_encoded(answer: Answer, count: int) -> list[Encoded]:
    """Tokens of ``count`` images."""
    document = answer.json()
    return [
        Encoded(**_tokenized(item, document), original_size=_size(item), cached=item["cached"])
        for item in _items(document, count)
    ]


def read_known(answer: Answer, digests: Sequence[str]) -> list[tuple[str, Encoded | None]]:
    """What is known of the images asked for, in their order."""
    document = answer.json()
    known = {
        item["sha256"]: Encoded(**_tokenized(item, document), original_size=_size(item), cached=True)
        for item in document["data"]
    }
    if known.keys() | set(document["missing"]) != set(digests):
        raise ValueError(f"{len(known)} known and {len(document['missing'])} missing of {len(digests)} images")
    return [(digest, known.get(digest)) for digest in digests]


def read_reconstruction(answer: Answer) -> Reconstruction:
    """An image there and back."""
    document = answer.json()
    return Reconstruction(
        **_tokenized(document, document),
        original_size=_size(document),
        psnr=document["quality"]["psnr"],
        ssim=document["quality"]["ssim"],
        picture=_picture(document["image"], document["content_type"]),
    )


def read_picture(answer: Answer) -> Picture:
    """A picture that is the answer itself."""
    return Picture(data=answer.content, content_type=answer.headers["content-type"])


def read_pictures(answer: Answer, count: int) -> list[Picture]:
    """``count`` pictures in one document."""
    return [_picture(item["b64"], item["content_type"]) for item in _items(answer.json(), count)]


def read_mixed(answer: Answer) -> Mixed:
    """One picture of several codes."""
    document = answer.json()
    return Mixed(**_tokenized(document, document), picture=_picture(document["image"], document["content_type"]))


def read_generated(answer: Answer, first: int, count: int) -> list[Generated]:
    """``count`` new images, the first of them at place ``first`` of what the caller asked for."""
    document = answer.json()
    return [read_generated_item(item, document, first=first) for item in _items(document, count)]


def read_generated_item(item: Mapping[str, Any], facts: Mapping[str, Any], *, first: int = 0) -> Generated:
    """A new image, with what all images of an answer have in common."""
    return Generated(
        **_tokenized(item, facts),
        index=first + item["index"],
        seed=item["seed"],
        class_id=facts["class_id"],
        class_name=facts["class_name"],
        generator_revision=facts["generator_revision"],
        settings=facts["settings"],
        picture=_picture(item["image"], item["content_type"]),
    )


def read_step(item: Mapping[str, Any]) -> Step:
    """A sampling step."""
    return Step(
        index=item["index"],
        step=item["step"],
        steps=item["steps"],
        tokens=tuple(item["tokens"]),
        known=item["known"],
        picture=_picture(item["image"], item["content_type"]) if "image" in item else None,
    )


def read_models(answer: Answer) -> list[Model]:
    """What is served."""
    return [_model(entry) for entry in answer.json()["data"]]


def read_classes(answer: Answer) -> list[ImageClass]:
    """The classes of a generator."""
    return [
        ImageClass(id=entry["id"], name=entry["name"], names=tuple(entry["names"])) for entry in answer.json()["data"]
    ]


def _model(entry: Mapping[str, Any]) -> Model:
    plain = {member.name for member in fields(Model)} - {"generator", "limits"}
    generator = entry["generator"]
    return Model(
        **{name: entry[name] for name in plain},
        generator=None if generator is None else GeneratorInfo(**_members(GeneratorInfo, generator)),
        limits=Limits(**_members(Limits, entry["limits"])),
    )


def _members(kind: type[GeneratorInfo] | type[Limits], document: Mapping[str, Any]) -> dict[str, Any]:
    """Members that this version of the client knows; a newer service may say more."""
    return {member.name: document[member.name] for member in fields(kind)}


def _tokenized(item: Mapping[str, Any], owner: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokens": tuple(item["tokens"]),
        "code": item["code"],
        "model": owner["model"],
        "revision": owner["revision"],
    }


def _items(document: Any, count: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = document["data"]
    if [item["index"] for item in items] != list(range(count)):
        raise ValueError(f"{len(items)} items for {count} images")
    return items


def _size(item: Mapping[str, Any]) -> tuple[int, int]:
    return item["original_size"]["width"], item["original_size"]["height"]


def _picture(text: str, content_type: str) -> Picture:
    return Picture(data=base64.b64decode(text, validate=True), content_type=content_type)
