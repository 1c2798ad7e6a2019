"""Latents in requests and responses: as ``.npy``, as raw numbers with ``X-Shape`` and ``X-Dtype``, or as base64 in JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.responses import Response

from models.arrays import Latents
from models.codes.code_format import CodeError
from models.codes.latents import DTYPES, LatentFormat, to_dtype, to_npy
from service.api.image_responses import OCTETS, as_base64, model_headers
from service.api.schemas.base import LatentDtype, Size
from service.api.schemas.images import DecodeAnyRequest
from service.api.schemas.tokens import EncodedLatents, LatentsResponse
from service.errors import ErrorDetail
from service.http.problems import InvalidRequest, invalid_value
from service.inference.model_info import ModelInfo
from service.operations.generation import MAX_SEED, consecutive_seeds
from service.operations.tokenization import TokenizedImage

NPY = "application/x-npy"
LATENT_MEDIA_TYPES = ("application/json", NPY, OCTETS)

LATENT_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "latents",
        "in": "query",
        "description": "Return the vectors before quantization instead of token ids. Always true for a VAE.",
        "schema": {"type": "boolean"},
    },
    {
        "name": "dtype",
        "in": "query",
        "description": "Number format of latents. Default: float32.",
        "schema": {"type": "string", "enum": list(DTYPES)},
    },
    {
        "name": "seed",
        "in": "query",
        "description": "Sample the posterior of a VAE instead of its mean; image i has the seed `seed + i`.",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
    },
]


@dataclass(frozen=True)
class LatentOptions:
    """The number format, and the seed of the first image; None: the posterior's mean."""

    dtype: LatentDtype = "float32"
    seed: int | None = None

    def latents_of(self, info: ModelInfo, images: Sequence[TokenizedImage]) -> Latents:
        """The latents float32 [B, K, C] of encoded images. Raises ``InvalidArgument`` for too large a seed."""
        seeds = None if self.seed is None else consecutive_seeds(self.seed, len(images), pointer="query/seed")
        return info.latent_format.latents_of(info.latent_format.encoded([image.packed for image in images]), seeds)


def latent_options(request: Request, info: ModelInfo) -> LatentOptions | None:
    """What the query says of latents; None if token ids are wanted. Raises ``InvalidRequest``."""
    if info.codes is not None and not request.scope["query_string"]:
        return None
    query = request.query_params
    latents, dtype, seed, length = (query.get(name) for name in ("latents", "dtype", "seed", "length"))
    if latents not in (None, "true", "false"):
        raise invalid_value("query/latents", "not a truth value", latents[:20], "true or false")
    if info.codes is None and latents == "false":
        raise invalid_value("query/latents", f"{info.name} is a VAE and has no token ids", latents, "true")
    if info.codes is not None and latents != "true":
        for name, value in (("dtype", dtype), ("seed", seed)):
            if value is not None:
                raise invalid_value(
                    f"query/{name}", "a parameter of latents only", value[:20], "latents=true beside it"
                )
        return None
    if length is not None:
        raise invalid_value("query/length", "a parameter of codes only", length[:20])
    if dtype not in (None, *DTYPES):
        raise invalid_value("query/dtype", "unknown number format of latents", dtype[:20], " or ".join(DTYPES))
    if seed is not None and info.codes is not None:
        raise invalid_value("query/seed", f"{info.name} is no VAE, so its latents are not sampled", seed[:20])
    return LatentOptions(cast("LatentDtype", dtype or "float32"), None if seed is None else _seed(seed))


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEED)) and int(text) <= MAX_SEED):
        raise invalid_value("query/seed", "not a seed", text[:20], f"0..{MAX_SEED}")
    return int(text)


def latents_response(
    media_type: str, info: ModelInfo, images: Sequence[TokenizedImage], options: LatentOptions
) -> Response:
    """The latents of encoded images: [K, C] of one, [B, K, C] of several; in JSON [K, C] each."""
    latents = to_dtype(options.latents_of(info, images), options.dtype)
    if media_type != "application/json":
        return _array_response(media_type, latents[0] if len(images) == 1 else latents, info, options)
    items = [
        EncodedLatents(
            index=index,
            latents=as_base64(row.tobytes()),
            original_size=Size(width=image.original_size[0], height=image.original_size[1]),
            cached=image.cached,
        )
        for index, (image, row) in enumerate(zip(images, latents, strict=True))
    ]
    document = LatentsResponse(
        model=info.name, revision=info.revision, shape=info.latent_format.shape, dtype=options.dtype, data=items
    )
    return Response(document.model_dump_json(), media_type=media_type)


def _array_response(media_type: str, array: npt.NDArray[Any], info: ModelInfo, options: LatentOptions) -> Response:
    headers = model_headers(info)
    if media_type == NPY:
        return Response(to_npy(array), media_type=media_type, headers=headers)
    headers |= {"X-Shape": ",".join(map(str, array.shape)), "X-Dtype": options.dtype}
    return Response(array.tobytes(), media_type=media_type, headers=headers)


def latents_from_json(body: DecodeAnyRequest, latent_format: LatentFormat) -> Latents:
    """Latents float32 [B, K, C] from base64. Raises ``InvalidRequest``, as the function below does."""
    if body.dtype is None or any(given is not None for given in (body.tokens, body.code, body.codes)):
        raise InvalidRequest(
            "Beside 'latents' the body has 'dtype', and none of 'tokens', 'code' and 'codes'.",
            errors=[ErrorDetail(pointer="/dtype", detail="expected beside latents", expected=" or ".join(DTYPES))],
        )
    given = body.latents or []
    if body.shape is not None and tuple(body.shape) != latent_format.shape:
        raise invalid_value("/shape", "not the shape of an image's latents", body.shape, str(list(latent_format.shape)))
    try:
        rows = [latent_format.from_bytes(base64.b64decode(text, validate=True), body.dtype) for text in given]
    except ValueError as error:
        raise invalid_value("/latents", str(error), None) from None
    if not rows or max(map(len, rows)) > 1:
        raise invalid_value("/latents", "an entry for each image is expected", len(given))
    return np.concatenate(rows)


def latents_from_body(request: Request, data: bytes, latent_format: LatentFormat, *, is_npy: bool) -> Latents:
    """Latents float32 [B, K, C] from a ``.npy`` file, or from raw numbers with ``X-Dtype`` and optionally ``X-Shape``."""
    try:
        if is_npy:
            return latent_format.from_npy(data)
        latents = latent_format.from_bytes(data, request.headers.get("x-dtype", ""))
    except CodeError as error:
        raise invalid_value("body" if is_npy else "header/X-Dtype", str(error), None) from None
    shape = request.headers.get("x-shape")
    whole = ",".join(map(str, latents.shape))
    if shape is not None and shape.replace(" ", "") not in (whole, whole.removeprefix("1,")):
        raise invalid_value("header/X-Shape", "not the shape of the body", shape[:80], whole)
    return latents
