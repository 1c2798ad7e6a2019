"""``POST /v1/encode``: images to token ids or latents."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.codes.code_format import CodeFormat
from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from models.codes.packed import PackedCodes
from service.api.access.authorization import KeyedRoute, consume_quota
from service.api.image_responses import OCTETS, model_headers
from service.api.latents import LATENT_MEDIA_TYPES, LATENT_PARAMETERS, NPY, latent_options, latents_response
from service.api.lengths import FIRST_TOKENS, length_parameter, requested_format
from service.api.schemas.base import Size
from service.api.schemas.tokens import Base64Images, EncodedItem, EncodeResponse, LatentsResponse
from service.api.state import ApiState
from service.api.uploads import read_uploads
from service.http.disconnects import run_while_connected
from service.http.negotiation import choose_media_type
from service.http.openapi import answers, request_body
from service.imaging.formats import ACCEPTED_FORMATS
from service.operations.tokenization import TokenizedImage

router = APIRouter(tags=["tokens"], route_class=KeyedRoute)

_FILES = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}, "minProperties": 1}
_PICTURE = (  # 4 x 4 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAANklEQVR42gXBMQEAAAgCMOJ4"
    "exOHECbxNoQhCGEYNwQseOCDEWyxh31sREmlKV0JsanN2bzNBxkKFZG9sRFtAAAAAElFTkSuQmCC"
)
IMAGE_BODY = request_body(
    Base64Images,
    {"image": f"data:image/png;base64,{_PICTURE}"},
    binary=list(ACCEPTED_FORMATS.values()),
    others={"multipart/form-data": _FILES},
    description="One image as the body, a multipart form of files, or JSON with base64.",
) | length_parameter(FIRST_TOKENS)


@router.post(
    "/v1/encode",
    summary="Encode images to tokens",
    responses=answers(
        *(400, 406, 408, 413, 415, 422, 429, 503, 504),
        schema=EncodeResponse | LatentsResponse,
        binary=[OCTETS, PACKED_CODES, NPY],
    ),
    openapi_extra=IMAGE_BODY | {"parameters": [*IMAGE_BODY["parameters"], *LATENT_PARAMETERS]},
)
async def encode(request: Request) -> Response:
    """Returns the tokens and codes of one or several images, in order.

    `Accept: application/vnd.titok.codes` returns a file of packed codes with a header that names the tokenizer.
    `Accept: application/octet-stream` returns packed codes without a header (48 bytes each with the default tokenizer),
    with tokenizer, revision and number of images in `X-Titok-Model`, `X-Titok-Revision` and `X-Titok-Images`.
    `length` cuts the tokens of a prefix-decodable tokenizer; the cache keeps all of them.

    With `latents=true`, and always for a VAE, it returns vectors instead: JSON with base64, `Accept: application/x-npy`, or
    raw little-endian numbers with `Accept: application/octet-stream`, described by `X-Shape` and `X-Dtype`.
    """
    state = ApiState.of(request)
    info, accept = state.info, request.headers.get("accept")
    if (options := latent_options(request, info)) is not None:
        media_type = choose_media_type(accept, LATENT_MEDIA_TYPES)
        images = await _encode_uploads(request, state, latents=True)
        deadline = state.deadline(request)
        return await state.operations.threads.run(
            latents_response, media_type, info, images, options, deadline=deadline
        )
    code_format = requested_format(request, info.code_format)
    media_type = choose_media_type(accept, ["application/json", OCTETS, PACKED_CODES])
    images = await _encode_uploads(request, state)
    if code_format is not info.code_format:
        images = [image.cut(code_format) for image in images]
        state.metrics.count_tokens("encode", [code_format.num_tokens] * len(images))
    packed = b"".join(image.packed for image in images)
    headers = model_headers(info, Images=str(len(images)))
    if media_type == OCTETS:
        return Response(packed, media_type=media_type, headers=headers)
    if media_type == PACKED_CODES:
        file = PackedCodes(info.name, info.revision, code_format, code_format.from_bytes(packed))
        return Response(file.to_bytes(), media_type=media_type, headers=headers)
    document = EncodeResponse(
        model=info.name,
        revision=info.revision,
        num_tokens=code_format.num_tokens,
        codebook_size=code_format.codebook_size,
        data=[_item(code_format, index, image) for index, image in enumerate(images)],
    )
    return Response(document.model_dump_json(), media_type="application/json")


async def _encode_uploads(request: Request, state: ApiState, *, latents: bool = False) -> list[TokenizedImage]:
    timings, deadline = request.state.timings, state.deadline(request)
    tokenizer = state.operations.tokenizer
    await tokenizer.wait_for_room(deadline)
    with timings.measure("read"):
        uploads = await read_uploads(request, max_images=state.settings.max_images)
    await consume_quota(request, len(uploads))
    space = state.key_space(request, latents=latents)
    lookup = await tokenizer.lookup_uploads(uploads, space=space, timings=timings)
    if (images := lookup.images) is not None:
        return images
    return await run_while_connected(request, tokenizer.tokenize_missing(lookup, deadline=deadline, timings=timings))


def _item(code_format: CodeFormat, index: int, image: TokenizedImage) -> EncodedItem:
    width, height = image.original_size
    return EncodedItem(
        index=index,
        tokens=image.tokens,
        code=code_format.text_of(image.packed),
        original_size=Size(width=width, height=height),
        cached=image.cached,
    )
