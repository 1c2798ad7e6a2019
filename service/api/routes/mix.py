"""``POST /v1/mix``: an image from the tokens of several images."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.arrays import Ids
from models.codes.code_format import lengths_of
from service.api.access.authorization import KeyedRoute
from service.api.bodies import read_json
from service.api.image_responses import OCTETS, as_base64, image_media_type, image_response, model_headers
from service.api.schemas.base import EXAMPLE_CODE
from service.api.schemas.images import MixRequest, MixResponse
from service.api.state import ApiState
from service.api.tokens import tokens_from_json
from service.http.disconnects import run_while_connected
from service.http.negotiation import choose_media_type
from service.http.openapi import answers, request_body
from service.http.problems import NotFound, invalid_value
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.operations.mixing import mix_tokens

router = APIRouter(tags=["images"], route_class=KeyedRoute)

_BODY = request_body(MixRequest, {"codes": [EXAMPLE_CODE, "A" * 64], "weights": [0.7, 0.3]})


@router.post(
    "/v1/mix",
    summary="Mix the tokens of several images",
    responses=answers(
        *(400, 404, 406, 408, 409, 413, 415, 422, 429, 503, 504),
        schema=MixResponse,
        binary=[*OUTPUT_EXTENSIONS, OCTETS],
    ),
    openapi_extra=_BODY,
)
async def mix(request: Request) -> Response:
    """Interpolates between images, combines tokens of several images, or both.

    Each token becomes the codebook entry nearest to the mean of the images' codebook vectors, weighted by `weights`
    (default: equal). `positions` has an entry for each token: the index of the image to copy the token from, or null for
    the weighted mean. Of images with different numbers of tokens the mix has as many as the shortest.

    Returns JSON with the tokens and the image; the image with `Accept: image/*`; or the packed code, without decoding it,
    with `Accept: application/octet-stream`.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    answer = choose_media_type(request.headers.get("accept"), ["application/json", *OUTPUT_EXTENSIONS, OCTETS])
    with timings.measure("read"):
        body = await read_json(request, MixRequest)
    state.operations.models.check(body.model, body.revision)
    tokens = tokens_from_json(body, info.code_format, max_images=state.settings.max_images)
    tokens = tokens[:, : lengths_of(tokens).min()]
    _check(body, tokens)
    if info.codebook.size == 0:
        raise NotFound(f"{info.name} has no codebook, so its tokens cannot be mixed.")
    with timings.measure("mix"):
        mixed = await state.operations.threads.run(
            lambda: mix_tokens(tokens, info.codebook, weights=body.weights, positions=body.positions),
            deadline=deadline,
        )
    code = info.code_format.to_text(mixed[None])[0]
    headers = model_headers(info, Code=code)
    if answer == OCTETS:
        return Response(info.code_format.pack(mixed[None]).tobytes(), media_type=OCTETS, headers=headers)
    media_type = image_media_type(body.format) if answer == "application/json" else answer
    rendered = await run_while_connected(
        request,
        state.operations.renderer.render(
            info.code_format.pad([mixed]), media_type, body.quality, deadline=deadline, timings=timings
        ),
    )
    if answer != "application/json":
        return image_response(rendered, media_type, headers)
    document = MixResponse(
        model=info.name,
        revision=info.revision,
        tokens=mixed.tolist(),
        code=code,
        image=as_base64(rendered.files[0]),
        content_type=media_type,
    )
    return Response(document.model_dump_json(), media_type="application/json")


def _check(body: MixRequest, tokens: Ids) -> None:
    """Raises ``InvalidRequest`` for weights or positions that do not match the images."""
    images, length = tokens.shape
    if body.weights is not None:
        if len(body.weights) != images:
            raise invalid_value(
                "/weights", "one weight for each image is expected", len(body.weights), f"{images} weights"
            )
        if not any(body.weights):
            raise invalid_value("/weights", "all weights are zero", 0, "a weight above 0")
    if body.positions is not None:
        if len(body.positions) != length:
            raise invalid_value(
                "/positions", "one entry for each token is expected", len(body.positions), f"{length} entries"
            )
        for place, source in enumerate(body.positions):
            if source is not None and not 0 <= source < images:
                raise invalid_value(
                    f"/positions/{place}", "image index out of range", source, f"0..{images - 1}, or null"
                )
