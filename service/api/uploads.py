"""The images of a request, however they were sent: as the body itself, as files of a form, or as base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from service.api.schemas import Base64Images, parse_body
from service.http.negotiation import media_type_of, unsupported_content_type
from service.http.problems import ContentTooLarge, InvalidRequest, MalformedBody, ProblemDetail, RequestTimeout
from service.imaging.media import ACCEPTED_FORMATS

__all__ = ["Upload", "read_body", "read_uploads"]

# Some clients say "octet-stream" for every file; the bytes tell what they are.
RAW_TYPES = frozenset({"application/octet-stream"})
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came: ``declared`` media type if any, and the ``pointer`` that names it in a problem."""

    data: bytes
    declared: str | None
    pointer: str


async def read_body(request: Request, *, seconds: float) -> bytes:
    """The whole body, within ``seconds``. Its length is bounded before it comes here."""
    try:
        async with asyncio.timeout(seconds):
            return await _body(request)
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not arrive within {seconds:g} seconds.", headers={"Connection": "close"}
        ) from None


async def _body(request: Request) -> bytes:
    """``request.body()``, which is kept there for nobody."""
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_uploads(request: Request, *, seconds: float, max_images: int) -> list[Upload]:
    """The images of a request, at least one and at most ``max_images``. Raises the problem that applies."""
    content_type = media_type_of(request.headers.get("content-type"))
    if content_type.startswith("image/") or content_type in RAW_TYPES:
        uploads = [Upload(await read_body(request, seconds=seconds), content_type, "body")]
    elif content_type == "multipart/form-data":
        uploads = await _read_form(request, seconds=seconds, max_images=max_images)
    elif content_type == "application/json":
        uploads = _from_json(parse_body(Base64Images, await read_body(request, seconds=seconds)))
    else:
        raise unsupported_content_type(
            content_type,
            detail="not a type that images come in",
            advice="Send one image as the body with its own type (curl -H 'Content-Type: image/jpeg' --data-binary "
            "@photo.jpg), files as multipart/form-data (curl -F image=@photo.jpg), or base64 as application/json.",
            expected=[*ACCEPTED_FORMATS.values(), "multipart/form-data", "application/json"],
        )
    if not uploads:
        raise InvalidRequest("The request holds no image.", errors=[ProblemDetail(pointer="body", detail="no image")])
    if len(uploads) > max_images:
        raise ContentTooLarge(
            f"The request holds {len(uploads)} images; at most {max_images} are taken.",
            errors=[
                ProblemDetail(
                    pointer="body", detail="too many images", value=len(uploads), expected=f"at most {max_images}"
                )
            ],
        )
    return uploads


async def _read_form(request: Request, *, seconds: float, max_images: int) -> list[Upload]:
    try:
        # One file more than allowed is let in, so that the refusal can speak of images.
        async with asyncio.timeout(seconds), request.form(max_files=max_images + 1, max_fields=16) as form:
            uploads: list[Upload] = []
            for name, part in form.multi_items():
                pointer = f"body/{len(uploads)}"
                if not isinstance(part, UploadFile):
                    raise InvalidRequest(
                        f"The form's field {name[:80]!r} is no file. Send each image as a file "
                        f"(curl -F image=@photo.jpg).",
                        errors=[ProblemDetail(pointer=pointer, detail="not a file", value=name[:80])],
                    )
                declared = media_type_of(part.content_type) or None
                uploads.append(Upload(await part.read(), declared, pointer))
            return uploads
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not arrive within {seconds:g} seconds.", headers={"Connection": "close"}
        ) from None


def _from_json(body: Base64Images) -> list[Upload]:
    if (body.image is None) == (body.images is None):
        raise InvalidRequest(
            "The body has either 'image' or 'images'.",
            errors=[ProblemDetail(pointer="", detail="exactly one of image and images is expected")],
        )
    if body.image is not None:
        return [_from_base64(body.image, "/image")]
    return [_from_base64(text, f"/images/{index}") for index, text in enumerate(body.images or ())]


def _from_base64(text: str, pointer: str) -> Upload:
    match = _DATA_URI.match(text)
    declared = match["type"] if match else None
    if match is None and text.startswith("data:"):
        raise MalformedBody(
            "A data URI holds base64: data:image/jpeg;base64,...",
            errors=[ProblemDetail(pointer=pointer, detail="not a base64 data URI", value=text[:40])],
        )
    try:
        return Upload(base64.b64decode(text[match.end() if match else 0 :], validate=True), declared, pointer)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(
            f"The image at {pointer} is not base64: {error}.",
            errors=[ProblemDetail(pointer=pointer, detail="not base64", value=text[:40])],
        ) from None
