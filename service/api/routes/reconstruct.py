"""``POST /v1/reconstruct``: encodes and decodes an image, and measures the quality."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.arrays import Ids, Latents, Pixels
from models.codes.code_format import CodeFormat
from models.codes.latents import to_dtype
from service.api.access.authorization import KeyedRoute
from service.api.image_responses import as_base64, image_media_type, image_response, model_headers
from service.api.latents import LATENT_PARAMETERS, LatentOptions, latent_options
from service.api.lengths import requested_format
from service.api.routes.encode import IMAGE_BODY
from service.api.schemas.base import Size
from service.api.schemas.images import Quality, ReconstructLatentsResponse, ReconstructResponse
from service.api.state import ApiState
from service.api.uploads import read_uploads
from service.cache import KeySpace
from service.http.disconnects import run_while_connected
from service.http.negotiation import choose_media_type
from service.http.openapi import answers
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.imaging.quality import measure_quality
from service.inference.model_info import ModelInfo
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
        *(400, 406, 408, 413, 415, 422, 429, 503, 504),
        schema=ReconstructResponse | ReconstructLatentsResponse,
        binary=list(OUTPUT_EXTENSIONS),
    ),
    openapi_extra=IMAGE_BODY | {"parameters": [*IMAGE_BODY["parameters"], *LATENT_PARAMETERS[1:]]},
)
async def reconstruct(request: Request) -> Response:
    """Encodes one image and decodes its tokens, with `length` only the first ones.

    Returns JSON with the tokens, the reconstruction and its quality; or the reconstruction with `Accept: image/*`, with
    the quality in headers. The reference is the preprocessed image, resized and cropped. A VAE has latents instead of
    tokens; `dtype` and `seed` apply to them.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    # With codes the query may ask for latents of encode alone.
    options = latent_options(request, info) if info.codes is None else None
    wanted = options or requested_format(request, info.code_format)
    answer = choose_media_type(request.headers.get("accept"), ["application/json", *OUTPUT_EXTENSIONS])
    media_type = image_media_type(None) if answer == "application/json" else answer
    await state.operations.tokenizer.wait_for_room(deadline)
    with timings.measure("read"):
        uploads = await read_uploads(request, max_images=1)
    space = state.key_space(request, latents=options is not None)
    work = _reconstruct(
        state.operations, uploads[0], media_type, wanted, space=space, deadline=deadline, timings=timings
    )
    image, original, rendered = await run_while_connected(request, work)
    with timings.measure("quality"):
        decibels, similarity = await state.operations.threads.run(
            measure_quality, rendered.pixels[0], original, deadline=deadline
        )
    quality = Quality(psnr=decibels, ssim=similarity)
    if answer != "application/json":
        code = {} if isinstance(wanted, LatentOptions) else {"Code": wanted.text_of(image.packed)}
        psnr = "inf" if quality.psnr is None else f"{quality.psnr:.2f}"
        headers = model_headers(info, **code, PSNR=psnr, SSIM=f"{quality.ssim:.4f}")
        return image_response(rendered, media_type, headers)
    document = _document(info, image, wanted, quality, rendered.files[0], media_type)
    return Response(document.model_dump_json(), media_type="application/json")


def _document(
    info: ModelInfo,
    image: TokenizedImage,
    wanted: CodeFormat | LatentOptions,
    quality: Quality,
    file: bytes,
    media_type: str,
) -> ReconstructResponse | ReconstructLatentsResponse:
    width, height = image.original_size
    shared: dict[str, Any] = {
        "model": info.name,
        "revision": info.revision,
        "original_size": Size(width=width, height=height),
        "quality": quality,
        "image": as_base64(file),
        "content_type": media_type,
    }
    if isinstance(wanted, CodeFormat):
        code = wanted.text_of(image.packed)
        return ReconstructResponse(**shared, tokens=image.tokens, code=code, code_bytes=wanted.num_bytes)
    latents = to_dtype(wanted.latents_of(info, [image]), wanted.dtype)
    return ReconstructLatentsResponse(
        **shared, latents=as_base64(latents.tobytes()), shape=info.latent_format.shape, dtype=wanted.dtype
    )


async def _reconstruct(
    operations: Operations,
    upload: Upload,
    media_type: str,
    wanted: CodeFormat | LatentOptions,
    *,
    space: KeySpace,
    deadline: float,
    timings: RequestTimings,
) -> tuple[TokenizedImage, Pixels, RenderedImages]:
    image = (await operations.tokenizer.tokenize([upload], space=space, deadline=deadline, timings=timings))[0]
    info = operations.models.info
    if isinstance(wanted, CodeFormat):
        image = image.cut(wanted)
        tokens: Ids | Latents = info.code_format.pad([*wanted.from_bytes(image.packed)])
    else:
        tokens = wanted.latents_of(info, [image])
    originals: list[Pixels] = []
    rendered, _ = await asyncio.gather(
        operations.renderer.render(tokens, media_type, None, deadline=deadline, timings=timings),
        operations.preprocessor.preprocess(
            [upload], timings, deadline=deadline, use=lambda _, pixels: originals.append(pixels)
        ),
    )
    return image, originals[0], rendered
