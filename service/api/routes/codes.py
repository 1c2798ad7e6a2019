"""``/v1/codes``: looks up cached codes by the digest of an image file, without uploading it."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from models.codes.code_format import CodeFormat
from service.api.access.authorization import KeyedRoute
from service.api.bodies import read_json
from service.api.image_responses import model_headers
from service.api.lengths import FIRST_TOKENS, length_parameter, requested_format
from service.api.schemas.base import EXAMPLE_SHA256, SHA256_PATTERN, Size
from service.api.schemas.tokens import KnownCode, LookupRequest, LookupResponse
from service.api.state import ApiState
from service.http.openapi import answers, request_body
from service.http.problems import NotFound, invalid_value
from service.operations.tokenization import TokenizedImage

router = APIRouter(tags=["tokens"], route_class=KeyedRoute)

_DIGEST = re.compile(SHA256_PATTERN, re.ASCII)


@router.post(
    "/v1/codes:lookup",
    summary="Look up codes by image digest",
    responses=answers(400, 404, 408, 413, 415, 422, 503, schema=LookupResponse),
    openapi_extra=request_body(LookupRequest, {"sha256": [EXAMPLE_SHA256]}) | length_parameter(FIRST_TOKENS),
)
async def lookup(request: Request) -> Response:
    """Returns the cached codes of up to 1,000 SHA-256 digests of image files.

    Only the images in `missing` need to be uploaded to `/v1/encode`. A hit reveals that the image was sent before:
    `TITOK_CACHE_SCOPE=key` limits look-ups to images sent with the same API key, `TITOK_LOOKUP=false` disables this route.
    """
    state = _state_of(request)
    code_format = requested_format(request, state.info.code_format)
    with request.state.timings.measure("read"):
        body = await read_json(request, LookupRequest)
    digests = [_digest(text, f"/sha256/{index}") for index, text in enumerate(body.sha256)]
    known = await _look_up(request, digests)
    document = LookupResponse(
        model=state.info.name,
        revision=state.info.revision,
        data=[
            _item(code_format, digest, image) for digest, image in zip(digests, known, strict=True) if image is not None
        ],
        missing=[digest.hex() for digest, image in zip(digests, known, strict=True) if image is None],
    )
    return Response(document.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/codes/{sha256}",
    summary="Get the code of an image by its digest",
    responses=answers(404, 422, 503, schema=KnownCode),
    openapi_extra=length_parameter(FIRST_TOKENS),
)
async def known_code(
    request: Request,
    sha256: Annotated[
        str,
        PathParameter(
            description="SHA-256 digest of the image file.",
            examples=[EXAMPLE_SHA256],
            json_schema_extra={"pattern": SHA256_PATTERN},
        ),
    ],
) -> Response:
    """Returns the cached code of an image; 404 if it is not in the cache."""
    state = _state_of(request)
    code_format = requested_format(request, state.info.code_format)
    digest = _digest(sha256, "path/sha256")
    [image] = await _look_up(request, [digest])
    if image is None:
        raise NotFound("No image with this digest is in the cache. Send it to /v1/encode.")
    headers = model_headers(state.info)
    return Response(_item(code_format, digest, image).model_dump_json(), media_type="application/json", headers=headers)


def _state_of(request: Request) -> ApiState:
    state = ApiState.of(request)
    if not state.settings.lookup or state.settings.cache == "off":
        raise NotFound("Look-ups are disabled: TITOK_LOOKUP or the cache is off.")
    return state


async def _look_up(request: Request, digests: list[bytes]) -> list[TokenizedImage | None]:
    state, timings = ApiState.of(request), request.state.timings
    with timings.measure("cache"):
        known = await state.operations.tokenizer.lookup_digests(digests, state.key_space(request))
    timings.record_image_count(len(digests), cache_hits=len(digests) - known.count(None))
    return known


def _digest(text: str, pointer: str) -> bytes:
    if not _DIGEST.fullmatch(text):
        raise invalid_value(pointer, "not a SHA-256 digest", text[:80], "64 hexadecimal digits")
    return bytes.fromhex(text)


def _item(code_format: CodeFormat, digest: bytes, image: TokenizedImage) -> KnownCode:
    image, (width, height) = image.cut(code_format), image.original_size
    return KnownCode(
        sha256=digest.hex(),
        tokens=image.tokens,
        code=code_format.text_of(image.packed),
        original_size=Size(width=width, height=height),
    )
