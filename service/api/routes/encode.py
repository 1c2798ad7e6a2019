"""``POST /v1/encode``: images to token ids."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from models.codes.packed import PackedCodes
from service.api.access.authorization import consume_quota
from service.api.schemas import EXAMPLE_CODE, EXAMPLE_REVISION, EXAMPLE_TOKENS, Base64Images, EncodeResponse
from service.api.uploads import read_uploads
from service.http.negotiation import choose_media_type
from service.http.openapi import answers
from service.imaging.media import ACCEPTED_FORMATS
from service.operations.context import ServiceContext
from service.operations.rendering import OCTETS
from service.operations.tokenization import TokenizedImage, recall, tokenize_recalled
from service.telemetry.timings import RequestTimings

__all__ = ["IMAGE_BODY", "router"]

router = APIRouter(tags=["tokens"])

_FILES = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}, "minProperties": 1}
_PICTURE = (  # 4 x 4 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAANklEQVR42gXBMQEAAAgCMOJ4"
    "exOHECbxNoQhCGEYNwQseOCDEWyxh31sREmlKV0JsanN2bzNBxkKFZG9sRFtAAAAAElFTkSuQmCC"
)
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image as the body itself, files of a form, or base64 in JSON.",
        "content": {
            **{name: {"schema": {"type": "string", "format": "binary"}} for name in ACCEPTED_FORMATS.values()},
            "multipart/form-data": {"schema": _FILES},
            "application/json": {
                "schema": Base64Images.model_json_schema(),
                "example": {"image": f"data:image/png;base64,{_PICTURE}"},
            },
        },
    }
}

_EXAMPLE = {
    "model": "titok-mini-32",
    "revision": EXAMPLE_REVISION,
    "num_tokens": 32,
    "codebook_size": 4096,
    "data": [
        {
            "index": 0,
            "tokens": EXAMPLE_TOKENS,
            "code": EXAMPLE_CODE,
            "original_size": {"width": 600, "height": 400},
            "cached": False,
        }
    ],
}


@router.post(
    "/v1/encode",
    summary="Turn images into token ids",
    response_model=EncodeResponse,
    responses=answers(400, 406, 408, 413, 415, 422, 429, 503, 504, example=_EXAMPLE, binary=[OCTETS, PACKED_CODES]),
    openapi_extra=IMAGE_BODY,
)
async def encode(request: Request) -> Response:
    """Tokens of one or many images, in order.

    `Accept: application/vnd.titok.codes` answers with a file of packed codes, whose header says whose they are;
    `application/octet-stream` with the packed codes alone, one after the other (48 bytes each with the default
    tokenizer), and then the headers `X-Titok-Model`, `X-Titok-Revision` and `X-Titok-Images` say whose and how many.
    """
    context = ServiceContext.of(request)
    timings: RequestTimings = request.scope["state"]["timings"]  # what ``request.state`` shows, without its detour
    info, deadline = context.model_info, context.deadline(request)
    media_type = choose_media_type(request.headers.get("accept"), ["application/json", OCTETS, PACKED_CODES])
    with timings.measure("read"):
        uploads = await read_uploads(
            request, seconds=context.settings.body_timeout, max_images=context.settings.max_images
        )
    await consume_quota(request, len(uploads))
    recalled = await recall(context, uploads, space=context.keys_for(request), timings=timings)
    images = recalled.images
    if images is None:
        work = tokenize_recalled(context, recalled, deadline=deadline, timings=timings)
        images = await context.while_connected(request, work)
    if media_type != "application/json":
        if media_type == PACKED_CODES:
            tokens = info.code_format.from_bytes(b"".join(image.packed for image in images))
            body = PackedCodes(info.name, info.revision, info.code_format, tokens).to_bytes()
        else:
            body = b"".join(image.packed for image in images)
        headers = {
            "X-Titok-Model": info.name,
            "X-Titok-Revision": info.revision,
            "X-Titok-Images": str(len(images)),
        }
        return Response(body, media_type=media_type, headers=headers)
    # What EncodeResponse says, without its checks: these values are this service's own, and a hit costs little else.
    answer = {
        "model": info.name,
        "revision": info.revision,
        "num_tokens": info.code_format.num_tokens,
        "codebook_size": info.code_format.codebook_size,
        "data": [_item(context, index, image) for index, image in enumerate(images)],
    }
    return Response(orjson.dumps(answer), media_type="application/json")


def _item(context: ServiceContext, index: int, image: TokenizedImage) -> dict[str, Any]:
    width, height = image.original_size
    return {
        "index": index,
        "tokens": context.model_info.code_format.ids_of(image.packed),
        "code": context.model_info.code_format.text_of(image.packed),
        "original_size": {"width": width, "height": height},
        "cached": image.cached,
    }
