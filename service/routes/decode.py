"""``POST /v1/decode``: token ids to images; ``GET /v1/images/...``: the same, with the code as the address."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from service.context import ServiceContext
from service.media import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES
from service.negotiation import media_type_of, unsupported_content_type
from service.openapi import answers
from service.problems import NotFound, ProblemDetail
from service.rendering import (
    MULTIPART,
    OCTETS,
    as_base64,
    choose_image_answer,
    image_media_type,
    image_response,
    multipart_response,
    render,
)
from service.schemas import EXAMPLE_CODE, DecodedItem, DecodeRequest, DecodeResponse, parse_body
from service.tokens import tokens_from_bytes, tokens_from_code, tokens_from_json
from service.uploads import read_body

__all__ = ["router"]

router = APIRouter(tags=["images"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DecodeRequest.model_json_schema(), "example": {"code": EXAMPLE_CODE}},
            OCTETS: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_EXAMPLE = {
    "model": "titok-mini-32",
    "revision": "594725129161-p1",
    "data": [{"index": 0, "b64": "/9j/4AAQSkZJRgABAQAAAQABAAD...", "content_type": "image/jpeg"}],
}
_EXTENSIONS = {extension: media_type for media_type, extension in OUTPUT_EXTENSIONS.items()}
_DAY = 24 * 60 * 60


@router.post(
    "/v1/decode",
    summary="Turn token ids into images",
    response_model=DecodeResponse,
    responses=answers(
        *(400, 404, 406, 408, 409, 413, 415, 422, 429, 503, 504),
        example=_EXAMPLE,
        binary=[*OUTPUT_MEDIA_TYPES, MULTIPART],
    ),
    openapi_extra=_BODY,
)
async def decode(request: Request) -> Response:
    """One image comes as the body in the type that `Accept` prefers: JPEG unless it says PNG, WebP, raw or .npy.

    Several come as JSON with base64 items, or as `multipart/mixed`. The request is JSON with `tokens`, `code` or
    `codes`, or packed codes one after the other as `application/octet-stream`.
    """
    context, stages = ServiceContext.of(request), request.state.stages
    facts, deadline = context.facts, context.deadline(request)
    body = DecodeRequest()
    content_type = media_type_of(request.headers.get("content-type"))
    with stages.measure("read"):
        data = await read_body(request, seconds=context.settings.body_timeout)
    if content_type == OCTETS:
        context.check_model(request.headers.get("x-titok-model"), request.headers.get("x-titok-revision"))
        tokens = tokens_from_bytes(data, facts.code_format)
    elif content_type == "application/json":
        body = parse_body(DecodeRequest, data)
        context.check_model(body.model, body.revision)
        tokens = tokens_from_json(body, facts.code_format)
    else:
        raise unsupported_content_type(
            content_type,
            detail="not a type that tokens come in",
            advice=f"Send application/json, or packed codes as {OCTETS}.",
            expected=["application/json", OCTETS],
        )
    context.check_count(len(tokens), context.settings.max_images, "body")
    answer = choose_image_answer(request, many=len(tokens) > 1)
    media_type = image_media_type(body.format) if answer in ("application/json", MULTIPART) else answer
    rendered = await context.while_connected(
        request, render(context, tokens, media_type, body.quality, deadline=deadline, stages=stages)
    )
    headers = {"X-Titok-Model": facts.name, "X-Titok-Revision": facts.revision}
    if answer == MULTIPART:
        return multipart_response(rendered.files, media_type, headers)
    if answer != "application/json":
        return image_response(rendered, media_type, headers)
    items = [
        DecodedItem(index=i, b64=as_base64(file), content_type=media_type) for i, file in enumerate(rendered.files)
    ]
    document = DecodeResponse(model=facts.name, revision=facts.revision, data=items)
    return Response(document.model_dump_json(), media_type="application/json", headers=headers)


@router.api_route(
    "/v1/images/{tokenizer}/{code}.{extension}",
    methods=["GET", "HEAD"],
    summary="The image whose address is its code",
    response_class=Response,
    responses=answers(404, 409, 422, 429, 503, 504, binary=list(OUTPUT_EXTENSIONS), description="The image."),
)
async def image(
    request: Request,
    tokenizer: Annotated[str, PathParameter(examples=["titok-mini-32"])],
    code: Annotated[str, PathParameter(examples=[EXAMPLE_CODE])],
    extension: Annotated[str, PathParameter(examples=["jpg"])],
    quality: Annotated[int | None, Query(ge=1, le=100, description="Of JPEG and WebP.")] = None,
) -> Response:
    """For an `<img src>`: `/v1/images/titok-mini-32/{code}.jpg`.

    `{tokenizer}` is a name, or `name@revision`. With the revision the address never shows another picture, and any
    cache may keep it for ever; a bare name may get new weights one day, so caches ask again after a day.
    """
    context, stages = ServiceContext.of(request), request.state.stages
    facts, deadline = context.facts, context.deadline(request)
    media_type = _EXTENSIONS.get(extension)
    if media_type is None:
        raise NotFound(
            f"An image's address ends in {', '.join(f'.{known}' for known in _EXTENSIONS)}, not .{extension[:20]}.",
            errors=[ProblemDetail(pointer="path/extension", detail="unknown format", value=extension[:20])],
        )
    name, _, revision = tokenizer.partition("@")
    context.check_model(name, revision or None)
    tokens = tokens_from_code(code, facts.code_format, pointer="path/code")
    described = f"{facts.name}@{facts.revision}/{facts.precision['decoder']}/{code}.{extension}?quality={quality}"
    etag = f'"{hashlib.sha256(described.encode()).hexdigest()[:32]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "public, max-age=31536000, immutable" if revision else f"public, max-age={_DAY}",
        "Content-Location": f"/v1/images/{facts.name}@{facts.revision}/{code}.{extension}",
    }
    if etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    rendered = await context.while_connected(
        request, render(context, tokens, media_type, quality, deadline=deadline, stages=stages)
    )
    return image_response(rendered, media_type, headers)
