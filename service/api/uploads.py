"""The images of a request, however they were sent: as the body itself, as files of a form, or as base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.schemas.parsing import RequestT, parse_body
from service.api.schemas.tokens import Base64Images
from service.api.state import check_image_count
from service.errors import ErrorDetail
from service.http.negotiation import media_type_of, require_json, unsupported_content_type
from service.http.problems import ContentTooLarge, InvalidRequest, MalformedBody, RequestTimeout
from service.imaging.formats import ACCEPTED_FORMATS
from service.operations.preprocessing import Upload

# Some clients send every file as "octet-stream"; the format is sniffed from the bytes.
RAW_TYPES = frozenset({"application/octet-stream"})
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)


async def read_body(request: Request, *, seconds: float) -> bytes:
    """The whole body; ``BodyLimits`` bounds its length. Raises ``RequestTimeout`` after ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            return await _body(request)
    except TimeoutError:
        raise _body_timeout(seconds) from None


async def _body(request: Request) -> bytes:
    """As ``request.body()``, which would keep the bytes until the request ends."""
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_json(request: Request, schema: type[RequestT], *, seconds: float) -> RequestT:
    """A JSON body as its schema. Raises the ``Problem`` of another media type, of a slow body, or of invalid JSON."""
    require_json(request.headers.get("content-type"))
    return parse_body(schema, await read_body(request, seconds=seconds))


async def read_uploads(request: Request, *, seconds: float, max_images: int) -> list[Upload]:
    """The images of a request, at least one and at most ``max_images``. Raises a ``Problem``."""
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
        raise InvalidRequest("The request holds no image.", errors=[ErrorDetail(pointer="body", detail="no image")])
    check_image_count(len(uploads), max_images, "body")
    return uploads


async def _read_form(request: Request, *, seconds: float, max_images: int) -> list[Upload]:
    try:
        # One more file than allowed is parsed, so that the error can name the number of images and its limit.
        async with asyncio.timeout(seconds), request.form(max_files=max_images + 1, max_fields=16) as form:
            uploads: list[Upload] = []
            for name, part in form.multi_items():
                pointer = f"body/{len(uploads)}"
                if not isinstance(part, UploadFile):
                    raise InvalidRequest(
                        f"The form's field {name[:80]!r} is not a file. Send each image as a file "
                        f"(curl -F image=@photo.jpg).",
                        errors=[ErrorDetail(pointer=pointer, detail="not a file", value=name[:80])],
                    )
                declared = media_type_of(part.content_type) or None
                uploads.append(Upload(await part.read(), declared, pointer))
            return uploads
    except TimeoutError:
        raise _body_timeout(seconds) from None
    except HTTPException as error:
        if "Too many files" in str(error.detail):
            raise ContentTooLarge(f"The form has too many files; at most {max_images} are allowed.") from None
        raise


def _body_timeout(seconds: float) -> RequestTimeout:
    return RequestTimeout(f"The body did not arrive within {seconds:g} seconds.", headers={"Connection": "close"})


def _from_json(body: Base64Images) -> list[Upload]:
    if (body.image is None) == (body.images is None):
        raise InvalidRequest(
            "The body has either 'image' or 'images'.",
            errors=[ErrorDetail(pointer="", detail="exactly one of image and images is expected")],
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
            errors=[ErrorDetail(pointer=pointer, detail="not a base64 data URI", value=text[:40])],
        )
    try:
        return Upload(base64.b64decode(text[match.end() if match else 0 :], validate=True), declared, pointer)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(
            f"The image at {pointer} is not base64: {error}.",
            errors=[ErrorDetail(pointer=pointer, detail="not base64", value=text[:40])],
        ) from None
