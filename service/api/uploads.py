"""The images of a request, however they were sent: as the body itself, as files of a form, or as base64 in JSON."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from functools import partial

from fastapi import Request

from service.api.bodies import parse, read_body
from service.api.forms import parse_form
from service.api.schemas.parsing import parse_body
from service.api.schemas.tokens import Base64Images
from service.api.state import ApiState, check_image_count
from service.errors import ErrorDetail
from service.http.negotiation import media_type_of, unsupported_content_type
from service.http.problems import InvalidRequest, MalformedBody
from service.imaging.formats import ACCEPTED_FORMATS
from service.operations.preprocessing import Upload

# Some clients send every file as "octet-stream"; the format is sniffed from the bytes.
RAW_TYPES = frozenset({"application/octet-stream"})
_MAX_PREFIX = 1000  # characters of a data URI before its data
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)

_STANDARD_ALPHABET = str.maketrans("-_", "+/")


async def read_uploads(request: Request, *, max_images: int) -> list[Upload]:
    """The images of a request, at least one and at most ``max_images``. Raises a ``Problem``."""
    given = request.headers.get("content-type")
    content_type = media_type_of(given)
    parsing: Callable[[bytes], list[Upload]]
    if content_type.startswith("image/") or content_type in RAW_TYPES:
        return [Upload(await read_body(request), content_type, "body")]
    if content_type == "multipart/form-data":
        # One more part than allowed is parsed, so that the error can name the number of images and its limit.
        deadline = ApiState.deadline(request)
        parsing = partial(_from_form, content_type=given or "", max_parts=max_images + 1, deadline=deadline)
    elif content_type == "application/json":
        parsing = partial(_from_json, max_values=ApiState.of(request).max_json_values)
    else:
        raise unsupported_content_type(
            content_type,
            detail="not a type that images come in",
            advice="Send one image as the body with its own type (curl -H 'Content-Type: image/jpeg' --data-binary "
            "@photo.jpg), files as multipart/form-data (curl -F image=@photo.jpg), or base64 as application/json.",
            expected=[*ACCEPTED_FORMATS.values(), "multipart/form-data", "application/json"],
        )
    uploads = await parse(request, await read_body(request), parsing)
    if not uploads:
        raise InvalidRequest("The request holds no image.", errors=[ErrorDetail(pointer="body", detail="no image")])
    check_image_count(len(uploads), max_images, "body")
    return uploads


def _from_form(body: bytes, content_type: str, *, max_parts: int, deadline: float) -> list[Upload]:
    parts = parse_form(body, content_type, max_parts=max_parts, deadline=deadline)
    return [
        Upload(bytes(part.data), media_type_of(part.content_type) or None, f"body/{index}")
        for index, part in enumerate(parts)
    ]


def _from_json(data: bytes, *, max_values: int) -> list[Upload]:
    body = parse_body(Base64Images, data, max_values=max_values)
    if (body.image is None) == (body.images is None):
        raise InvalidRequest(
            "The body has either 'image' or 'images'.",
            errors=[ErrorDetail(pointer="", detail="exactly one of image and images is expected")],
        )
    if body.image is not None:
        return [_from_base64(body.image, "/image")]
    return [_from_base64(text, f"/images/{index}") for index, text in enumerate(body.images or ())]


def _from_base64(text: str, pointer: str) -> Upload:
    if text[:8].lower().startswith(("http://", "https://")):
        raise MalformedBody(
            "URLs are not fetched. Send the image itself: as the body, as a file of a form, or in base64.",
            errors=[ErrorDetail(pointer=pointer, detail="a URL, not base64", value=text[:80])],
        )
    match = _DATA_URI.match(text, 0, _MAX_PREFIX)
    declared = match["type"] if match else None
    if match is None and text.startswith("data:"):
        raise MalformedBody(
            "A data URI holds base64: data:image/jpeg;base64,...",
            errors=[ErrorDetail(pointer=pointer, detail="not a base64 data URI", value=text[:40])],
        )
    try:
        return Upload(_decoded_base64(text[match.end() if match else 0 :]), declared, pointer)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(
            f"The image at {pointer} is not base64: {error}.",
            errors=[ErrorDetail(pointer=pointer, detail="not base64", value=text[:40])],
        ) from None


def _decoded_base64(text: str) -> bytes:
    """Base64 of either alphabet, in one line or in several, with or without padding. Raises ``ValueError``."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        plain = "".join(text.split()).translate(_STANDARD_ALPHABET).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
