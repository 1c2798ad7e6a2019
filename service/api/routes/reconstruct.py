"""``POST /v1/reconstruct``: encodes and decodes an image, and measures the quality."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.arrays import Pixels
from models.codes.code_format import CodeFormat
from service.api.access.authorization import KeyedRoute
from service.api.image_responses import as_base64, image_media_type, image_response, model_headers
from service.api.lengths import requested_format
from service.api.routes.encode import IMAGE_BODY
from service.api.schemas.base import Size
from service.api.schemas.images import Quality, ReconstructResponse
from service.api.state import ApiState
from service.api.uploads import read_uploads
from service.cache import KeySpace
from service.http.disconnects import run_while_connected
from service.http.negotiation import choose_media_type
from service.http.openapi import answers
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.imaging.quality import measure_quality
from service.operations.build import Operations
from service.operations.preprocessing import Upload
from service.operations.rendering import RenderedImages
from service.operations.tokenization import TokenizedImage
from service.telemetry.timings import RequestTimings

router = APIRouter(tags=["images"], route_class=KeyedRoute)


@router.post(
    "/v1/reconstruct",
    summary="Encode, decode and measure quality",
    responses=answers(
        *(400, 406, 408, 413, 415, 422, 429, 503, 504), schema=ReconstructResponse, binary=list(OUTPUT_EXTENSIONS)
    ),
    openapi_extra=IMAGE_BODY,
)
async def reconstruct(request: Request) -> Response:
    """Encodes one image and decodes its tokens, with `length` only the first ones.

    Returns JSON with the tokens, the reconstruction and its quality; or the reconstruction with `Accept: image/*`, with
    the quality in headers. The reference is the preprocessed image, resized and cropped.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    code_format = requested_format(request, info.code_format)
    answer = choose_media_type(request.headers.get("accept"), ["application/json", *OUTPUT_EXTENSIONS])
    media_type = image_media_type(None) if answer == "application/json" else answer
    await state.operations.tokenizer.wait_for_room(deadline)
    with timings.measure("read"):
        uploads = await read_uploads(request, max_images=1)
    space = state.key_space(request)
    image, original, rendered = await run_while_connected(
        request,
        _reconstruct(
            state.operations, uploads[0], media_type, code_format, space=space, deadline=deadline, timings=timings
        ),
    )
    with timings.measure("quality"):
        decibels, similarity = await state.operations.threads.run(
            measure_quality, rendered.pixels[0], original, deadline=deadline
        )
    quality = Quality(psnr=decibels, ssim=similarity)
    code = code_format.text_of(image.packed)
    if answer != "application/json":
        psnr = "inf" if quality.psnr is None else f"{quality.psnr:.2f}"
        headers = model_headers(info, Code=code, PSNR=psnr, SSIM=f"{quality.ssim:.4f}")
        return image_response(rendered, media_type, headers)
    width, height = image.original_size
    document = ReconstructResponse(
        model=info.name,
        revision=info.revision,
        tokens=image.tokens,
        code=code,
        code_bytes=code_format.num_bytes,
        original_size=Size(width=width, height=height),
        quality=quality,
        image=as_base64(rendered.files[0]),
        content_type=media_type,
    )
    return Response(document.model_dump_json(), media_type="application/json")


async def _reconstruct(
    operations: Operations,
    upload: Upload,
    media_type: str,
    code_format: CodeFormat,
    *,
    space: KeySpace,
    deadline: float,
    timings: RequestTimings,
) -> tuple[TokenizedImage, Pixels, RenderedImages]:
    image = (await operations.tokenizer.tokenize([upload], space=space, deadline=deadline, timings=timings))[0]
    image = image.cut(code_format)
    tokens = operations.models.info.code_format.pad([*code_format.from_bytes(image.packed)])
    originals: list[Pixels] = []
    rendered, _ = await asyncio.gather(
        operations.renderer.render(tokens, media_type, None, deadline=deadline, timings=timings),
        operations.preprocessor.preprocess(
            [upload], timings, deadline=deadline, use=lambda _, pixels: originals.append(pixels)
        ),
    )
    return image, originals[0], rendered
