"""JSON bodies of decode, mix and reconstruct."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.base import (
    CODE_PATTERN,
    EXAMPLE_CODE,
    EXAMPLE_TOKENS,
    MAX_ITEMS,
    Base64File,
    Base64Latents,
    Code,
    ImageFormat,
    Index,
    LatentDtype,
    LatentShape,
    MediaType,
    Name,
    OfRevision,
    Size,
    StrictRequest,
    TokenIds,
    exactly_one,
    or_null,
)

_CODE = {"type": "string", "pattern": CODE_PATTERN}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": MAX_ITEMS}
_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS}


class DecodeRequest(StrictRequest):
    """Tokens or codes of one or several images: exactly one of `tokens`, `code` and `codes`."""

    model_config = ConfigDict(json_schema_extra=exactly_one(tokens="array", code="string", codes="array"))

    tokens: Annotated[list[Any] | None, or_null({"anyOf": [_IDS, {**_LIST, "items": _IDS}]})] = Field(
        None,
        max_length=MAX_ITEMS,
        description="Token ids of one image, or a list of such lists.",
        examples=[[EXAMPLE_TOKENS]],
    )
    code: Annotated[Any, or_null(_CODE)] = Field(None, description="One code.", examples=[EXAMPLE_CODE])
    codes: Annotated[list[Any] | None, or_null({**_LIST, "items": _CODE})] = Field(
        None, max_length=MAX_ITEMS, description="Several codes."
    )
    model: Name | None = Field(None, description="Tokenizer of the tokens. Must be the one served.")
    revision: Name | None = Field(None, description="Revision of the tokenizer. Must be the one served.")
    format: ImageFormat | None = Field(None, description="Image format in JSON and multipart responses.")
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Quality of JPEG and WebP. Default: 90."
    )


class DecodeAnyRequest(DecodeRequest):
    """Tokens, codes or latents of one or several images: exactly one of `tokens`, `code`, `codes` and `latents`."""

    model_config = ConfigDict(
        json_schema_extra=exactly_one(tokens="array", code="string", codes="array", latents="array")
    )

    latents: Annotated[
        list[str] | None,
        or_null({**_LIST, "items": {"type": "string", "contentEncoding": "base64"}}),
    ] = Field(
        None,
        max_length=MAX_ITEMS,
        description="Latents of several images, each in base64: little-endian numbers [K, C], row by row. For a VAE.",
    )
    dtype: LatentDtype | None = Field(None, description="Number format of the latents.")
    shape: list[int] | None = Field(None, max_length=2, description="K and C, checked if given.")


class MixRequest(DecodeRequest):
    """Tokens or codes of several images, and how to mix them."""

    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None,
        max_length=MAX_ITEMS,
        description="Weight of each image; only the ratios matter. Default: equal.",
        examples=[[0.7, 0.3]],
    )
    positions: list[int | None] | None = Field(
        None,
        max_length=MAX_ITEMS,
        description="For each token the index of the image to copy it from; null for the weighted mean.",
    )


class MixResponse(OfRevision):
    """The mixed tokens and their image."""

    tokens: TokenIds
    code: Code
    image: Base64File
    content_type: MediaType


class DecodedItem(BaseModel):
    """An image in a JSON response."""

    index: Index
    b64: Base64File
    content_type: MediaType


class DecodeResponse(OfRevision):
    """Images in a JSON response."""

    data: list[DecodedItem]


class Quality(BaseModel):
    """Similarity of a reconstruction to the resized and cropped original."""

    psnr: float | None = Field(
        description="Peak signal-to-noise ratio in dB; null if the images are equal.", examples=[19.5]
    )
    ssim: float = Field(description="Structural similarity, at most 1.", examples=[0.45])


class ReconstructLatentsResponse(OfRevision):
    """Latents, reconstruction and quality of an image, from a VAE."""

    latents: Base64Latents = Field(examples=["AACAPwAAAEAAAEBA..."])
    shape: LatentShape
    dtype: LatentDtype = Field(examples=["float32"])
    original_size: Size
    quality: Quality
    image: Base64File = Field(description="Image file of the reconstruction in base64.")
    content_type: MediaType


class ReconstructResponse(OfRevision):
    """Tokens, reconstruction and quality of an image."""

    tokens: TokenIds
    code: Code
    code_bytes: int = Field(examples=[48])
    original_size: Size
    quality: Quality
    image: Base64File = Field(description="Image file of the reconstruction in base64.")
    content_type: MediaType
