"""``GET /v1/images/...``: the image of a code, by URL."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from service.api.access.authorization import AccessControl, KeyedRoute
from service.api.schemas.base import CODE_PATTERN, EXAMPLE_CODE
from service.api.state import ApiState
from service.api.tokens import tokens_from_code
from service.errors import ErrorDetail
from service.http.disconnects import run_while_connected
from service.http.negotiation import holds_etag
from service.http.openapi import answers
from service.http.problems import Gone, NotFound
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.inference.model_info import ModelInfo
from service.operations.addresses import image_address
from service.operations.errors import RevisionMismatch
from service.operations.rendering import SIDES

router = APIRouter(tags=["images"], route_class=KeyedRoute)

_EXTENSIONS = {extension: media_type for media_type, extension in OUTPUT_EXTENSIONS.items()}
_DAY = 24 * 60 * 60
_YEAR = 365 * _DAY


@router.get(
    "/v1/images/{tokenizer}/{code}.{extension}",
    summary="Get the image of a code",
    operation_id="get_image",
    response_class=Response,
    responses={
        **answers(404, 410, 422, 429, 503, 504, binary=list(OUTPUT_EXTENSIONS), description="The image."),
        304: {"description": "Not modified: `If-None-Match` contains the `ETag` of the image."},
    },
)
async def image(
    request: Request,
    tokenizer: Annotated[str, PathParameter(examples=["titok-mini-32"])],
    code: Annotated[str, PathParameter(examples=[EXAMPLE_CODE], json_schema_extra={"pattern": CODE_PATTERN})],
    extension: Annotated[str, PathParameter(examples=["jpg"], json_schema_extra={"enum": list(_EXTENSIONS)})],
    size: Annotated[
        int | None,
        Query(ge=SIDES[0], le=SIDES[-1], description="Side length in pixels. Default: the image size of the model."),
    ] = None,
    quality: Annotated[int | None, Query(ge=1, le=100, description="Quality of JPEG and WebP.")] = None,
) -> Response:
    """Decodes a code, for use in `<img src>`: `/v1/images/titok-mini-32/{code}.jpg?size=64`.

    `{tokenizer}` is `name@revision` or `name`. With a revision the image never changes, and caches may keep it for ever;
    if another revision is served, the response is 410 with the current one in `served`. Without a revision the image may
    change with the weights, and caches may keep it for one day.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    extension = _canonical_extension(extension)
    media_type = _EXTENSIONS[extension]
    name, _, revision = tokenizer.partition("@")
    try:
        state.operations.models.check(name, revision or None)
    except RevisionMismatch as error:
        raise Gone(str(error), served=f"{info.name}@{info.revision}") from None
    tokens = tokens_from_code(code, info.code_format, pointer="path/code")
    address = image_address(info, code, extension, size=size, quality=quality)
    etag = _etag(address, info)
    # A shared cache would serve an image that needs a key to requests without one.
    sharing = "private" if AccessControl.of(request).keys.are_required else "public"
    headers = {
        "ETag": etag,
        "Cache-Control": f"{sharing}, max-age={_YEAR}, immutable" if revision else f"{sharing}, max-age={_DAY}",
        "Content-Location": request.scope["root_path"] + address,
    }
    if holds_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    file = state.rendered_images.get(etag)
    state.metrics.rendered_image_requests.labels("miss" if file is None else "hit").inc()
    timings.record_image_count(1, cache_hits=int(file is not None))
    if file is None:
        work = state.operations.renderer.render(
            tokens, media_type, quality, side=size, deadline=deadline, timings=timings
        )
        [file] = (await run_while_connected(request, work)).files
        state.rendered_images.put(etag, file)
    return Response(file, media_type=media_type, headers=headers)


def _canonical_extension(extension: str) -> str:
    """The extension in lower case, as OUTPUT_EXTENSIONS has it. Raises ``NotFound``."""
    canonical = extension.lower().replace("jpeg", "jpg")
    if canonical not in _EXTENSIONS:
        raise NotFound(
            f"The path of an image ends in {', '.join(f'.{known}' for known in _EXTENSIONS)}, not .{extension[:20]}.",
            errors=[ErrorDetail(pointer="path/extension", detail="unknown format", value=extension[:20])],
        )
    return canonical


def _etag(address: str, info: ModelInfo) -> str:
    """Includes the decoder's number format, which may change at a restart and with it the last bit of some pixels."""
    described = f"{address} {info.precision['decoder']}"
    return f'"{hashlib.sha256(described.encode()).hexdigest()[:32]}"'
