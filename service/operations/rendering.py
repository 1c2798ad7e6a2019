"""From token ids to pixels, and from pixels to the bytes of an answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from fastapi import Request
from PIL import Image
from starlette.responses import Response

from service.http.negotiation import choose_media_type
from service.imaging.media import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES, encode_image
from service.operations.context import ServiceContext
from service.telemetry.timings import RequestTimings

__all__ = [
    "MULTIPART",
    "OCTETS",
    "SIDES",
    "Rendered",
    "as_base64",
    "choose_image_answer",
    "image_media_type",
    "image_response",
    "multipart_response",
    "render",
]

MULTIPART = "multipart/mixed"
OCTETS = "application/octet-stream"
SIDES = range(16, 2049)  # pixels that an image can be scaled to


@dataclass(frozen=True)
class Rendered:
    """Images uint8 [B, S, S, 3], and each as a file."""

    pixels: npt.NDArray[np.uint8]
    files: list[bytes]


async def render(
    context: ServiceContext,
    tokens: npt.NDArray[np.int64],
    media_type: str,
    quality: int | None,
    *,
    deadline: float,
    timings: RequestTimings,
    side: int | None = None,
) -> Rendered:
    """Ids int64 [B, K] -> images, through the decode lane; the files are scaled to ``side`` pixels where it is given."""
    timings.record_image_count(len(tokens))
    with context.engine_call():
        decoded = await context.engine.decode(tokens, deadline=deadline)
    context.note_timing(timings, decoded.timing)

    def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
        watch = RequestTimings()
        file = encode_image(_scaled(pixels, side), media_type, quality=quality)
        context.metrics.render.labels(OUTPUT_EXTENSIONS.get(media_type, "raw")).observe(watch.total)
        return file

    with timings.measure("encode"):
        files = await context.map_in_threads(encode, [(pixels,) for pixels in decoded.images])
    return Rendered(decoded.images, files)


def _scaled(pixels: npt.NDArray[np.uint8], side: int | None) -> npt.NDArray[np.uint8]:
    if side is None or side == len(pixels):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def image_media_type(name: str | None) -> str:
    """The media type of a format name (``jpeg`` unless named)."""
    return f"image/{name or 'jpeg'}"


def as_base64(data: bytes) -> str:
    """Bytes in standard base64."""
    return base64.b64encode(data).decode()


def image_response(rendered: Rendered, media_type: str, headers: Mapping[str, str]) -> Response:
    """The first image as the body; raw pixels carry ``X-Shape`` and ``X-Dtype``."""
    extra = dict(headers)
    if media_type == OCTETS:
        extra |= {"X-Shape": ",".join(map(str, rendered.pixels.shape[1:])), "X-Dtype": "uint8"}
    return Response(rendered.files[0], media_type=media_type, headers=extra)


def multipart_response(images: Sequence[bytes], media_type: str, headers: Mapping[str, str]) -> Response:
    """Several images, each a part of its own (RFC 2046, section 5.1.3)."""
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
    """The media type of an answer that holds images: one as itself, or any number as JSON or multipart."""
    offers = ["application/json", MULTIPART] if many else [*OUTPUT_MEDIA_TYPES, "application/json", MULTIPART]
    return choose_media_type(request.headers.get("accept"), offers)
