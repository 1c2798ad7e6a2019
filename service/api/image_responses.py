"""Responses that hold images: one as the body, several as multipart, or base64 in JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from fastapi import Request
from starlette.responses import Response

from service.http.negotiation import choose_media_type
from service.imaging.encoding import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES
from service.inference.model_info import ModelInfo
from service.operations.rendering import RenderedImages

MULTIPART = "multipart/mixed"
OCTETS = "application/octet-stream"


def image_media_type(name: str | None) -> str:
    """The media type of a format name (``jpeg`` if None)."""
    return f"image/{name or 'jpeg'}"


def as_base64(data: bytes) -> str:
    """Bytes in standard base64."""
    return base64.b64encode(data).decode()


def model_headers(info: ModelInfo, **others: str) -> dict[str, str]:
    """``X-Titok-Model`` and ``X-Titok-Revision``, and other ``X-Titok-`` headers by the ends of their names."""
    named = {"Model": info.name, "Revision": info.revision, **others}
    return {f"X-Titok-{name}": value for name, value in named.items()}


def image_response(rendered: RenderedImages, media_type: str, headers: Mapping[str, str]) -> Response:
    """The first image as the body; raw pixels have ``X-Shape`` and ``X-Dtype``."""
    extra = dict(headers)
    if media_type == OCTETS:
        extra |= {"X-Shape": ",".join(map(str, rendered.pixels.shape[1:])), "X-Dtype": "uint8"}
    return Response(rendered.files[0], media_type=media_type, headers=extra)


def multipart_response(images: Sequence[bytes], media_type: str, headers: Mapping[str, str]) -> Response:
    """Several images, one a part (RFC 2046, section 5.1.3)."""
    boundary = "titok-image"
    while any(boundary.encode() in image for image in images):
        boundary += "-"
    extension = OUTPUT_EXTENSIONS[media_type]
    parts = [
        f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Length: {len(image)}\r\n"
        f'Content-Disposition: inline; filename="{index}.{extension}"\r\n\r\n'.encode()
        + image
        + b"\r\n"
        for index, image in enumerate(images)
    ]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return Response(body, media_type=f"{MULTIPART}; boundary={boundary}", headers=dict(headers))


def choose_image_answer(request: Request, *, many: bool) -> str:
    """The media type of the response by ``Accept``: one image as itself; any number as JSON or multipart."""
    offers = ["application/json", MULTIPART] if many else [*OUTPUT_MEDIA_TYPES, "application/json", MULTIPART]
    return choose_media_type(request.headers.get("accept"), offers)
