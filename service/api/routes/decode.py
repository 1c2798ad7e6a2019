"""``POST /v1/decode``: token ids or latents to images."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.arrays import Ids, Latents
from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from models.codes.packed import SIGNATURE
from service.api.access.authorization import KeyedRoute, consume_quota
from service.api.bodies import parse, read_body
from service.api.image_responses import (
    MULTIPART,
    OCTETS,
    as_base64,
    choose_image_answer,
    image_media_type,
    image_response,
    model_headers,
    multipart_response,
)
from service.api.latents import NPY, latents_from_body, latents_from_json
from service.api.lengths import length_parameter, requested_format
from service.api.schemas.base import EXAMPLE_CODE
from service.api.schemas.images import DecodeAnyRequest, DecodedItem, DecodeResponse
from service.api.schemas.parsing import parse_body
from service.api.state import ApiState, check_image_count
from service.api.tokens import check_format, packed_codes_from, tokens_from_bytes, tokens_from_json
from service.http.disconnects import run_while_connected
from service.http.negotiation import media_type_of, unsupported_content_type
from service.http.openapi import answers, request_body
from service.http.problems import invalid_value
from service.imaging.encoding import OUTPUT_MEDIA_TYPES

router = APIRouter(tags=["images"], route_class=KeyedRoute)

_BODY = request_body(DecodeAnyRequest, {"code": EXAMPLE_CODE}, binary=[PACKED_CODES, OCTETS, NPY]) | length_parameter(
    "Tokens of each of the packed codes in a body without a header. Default: all of the tokenizer's."
)


@router.post(
    "/v1/decode",
    summary="Decode tokens to images",
    responses=answers(
        *(400, 404, 406, 408, 409, 413, 415, 422, 429, 503, 504),
        schema=DecodeResponse,
        binary=[*OUTPUT_MEDIA_TYPES, MULTIPART],
    ),
    openapi_extra=_BODY,
)
async def decode(request: Request) -> Response:
    """Decodes the tokens of one or several images.

    The request is JSON with `tokens`, `code` or `codes`; a file of packed codes with a header
    (`application/vnd.titok.codes`); or packed codes without one (`application/octet-stream`). With a prefix-decodable
    tokenizer the images may have different numbers of tokens; in packed codes all have the same. A VAE decodes latents
    instead: JSON with `latents` and `dtype`; `.npy` (`application/x-npy`) of float16 or float32 [K, C] or [B, K, C]; or raw
    little-endian numbers (`application/octet-stream`) with `X-Dtype`, and `X-Shape`, which is checked if it is sent.

    One image is returned as the body, in the type that `Accept` prefers: JPEG (default), PNG, WebP, raw pixels or `.npy`.
    Several images are returned as JSON with base64, or as `multipart/mixed`.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    await state.operations.engine.wait_for_room("decode", deadline=deadline)
    with timings.measure("read"):
        body, tokens = await parse(request, await read_body(request), partial(_parse, request, state))
    await consume_quota(request, len(tokens))
    answer = choose_image_answer(request, many=len(tokens) > 1)
    media_type = image_media_type(body.format) if answer in ("application/json", MULTIPART) else answer
    rendered = await run_while_connected(
        request, state.operations.renderer.render(tokens, media_type, body.quality, deadline=deadline, timings=timings)
    )
    headers = model_headers(info)
    if answer == MULTIPART:
        return multipart_response(rendered.files, media_type, headers)
    if answer != "application/json":
        return image_response(rendered, media_type, headers)
    items = [
        DecodedItem(index=i, b64=as_base64(file), content_type=media_type) for i, file in enumerate(rendered.files)
    ]
    document = DecodeResponse(model=info.name, revision=info.revision, data=items)
    return Response(document.model_dump_json(), media_type="application/json", headers=headers)


def _parse(request: Request, state: ApiState, data: bytes) -> tuple[DecodeAnyRequest, Ids | Latents]:
    """The options, and the ids int64 [B, K] with ``PAD`` or a VAE's latents float32 [B, K, C], of a body; model, revision
    and number of images are checked.
    """
    models, info, max_images = state.operations.models, state.info, state.settings.max_images
    content_type = media_type_of(request.headers.get("content-type"))
    if content_type == "application/json":
        body = parse_body(DecodeAnyRequest, data, max_values=state.max_json_values)
        models.check(body.model, body.revision)
        if body.latents is None:
            if body.dtype is not None or body.shape is not None:
                raise invalid_value("/dtype", "a member of latents only", body.dtype, "'latents' beside it")
            return body, tokens_from_json(body, info.code_format, max_images=max_images)
        if info.codes is not None:
            raise invalid_value("/latents", f"{info.name} decodes token ids, not latents", None, "codes or tokens")
        check_image_count(len(body.latents), max_images, "/latents")
        return body, latents_from_json(body, info.latent_format)
    if info.codes is None and content_type in (NPY, OCTETS):
        if "length" in request.query_params:
            raise invalid_value("query/length", "a parameter of codes only", request.query_params["length"][:20])
        models.check(request.headers.get("x-titok-model"), request.headers.get("x-titok-revision"))
        latents = latents_from_body(request, data, info.latent_format, is_npy=content_type == NPY)
        check_image_count(len(latents), max_images, "body")
        return DecodeAnyRequest(), latents
    code_format = info.code_format
    if content_type == PACKED_CODES or (content_type == OCTETS and data.startswith(SIGNATURE)):
        packed = packed_codes_from(data)
        check_image_count(len(packed.tokens), max_images, "body")
        models.check(packed.tokenizer, packed.revision)
        check_format(packed, code_format)
        return DecodeAnyRequest(), code_format.pad([*packed.tokens])
    if content_type == OCTETS:
        models.check(request.headers.get("x-titok-model"), request.headers.get("x-titok-revision"))
        of_length = requested_format(request, code_format)
        check_image_count(len(data) // of_length.num_bytes, max_images, "body")
        return DecodeAnyRequest(), code_format.pad([*tokens_from_bytes(data, of_length)])
    raise unsupported_content_type(
        content_type,
        detail="not a media type for tokens",
        advice=f"Send application/json, or packed codes as {PACKED_CODES} or {OCTETS}.",
        expected=["application/json", PACKED_CODES, OCTETS],
    )
