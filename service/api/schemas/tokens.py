"""JSON bodies of encode and of look-ups."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.api.schemas.base import (
    EXAMPLE_SHA256,
    MAX_DIGESTS,
    MAX_ITEMS,
    SHA256_PATTERN,
    Base64Latents,
    Code,
    Index,
    LatentDtype,
    LatentShape,
    OfRevision,
    Size,
    StrictRequest,
    TokenIds,
    exactly_one,
    or_null,
)


class Base64Images(StrictRequest):
    """Images in JSON: exactly one of `image` and `images`. An image as the body, or a form of files, is faster."""

    model_config = ConfigDict(json_schema_extra=exactly_one(image="string", images="array"))

    image: str | None = Field(None, description="One image as base64 or data URI.")
    images: Annotated[
        list[str] | None,
        or_null({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS}),
    ] = Field(None, max_length=MAX_ITEMS, description="Several images as base64 or data URIs.")


class EncodedItem(BaseModel):
    """Tokens of an image."""

    index: Index
    tokens: TokenIds
    code: Code
    original_size: Size
    cached: bool = Field(description="Whether the code was in the cache.", examples=[False])


class EncodeResponse(OfRevision):
    """Tokens of images, and the tokenizer that made them."""

    num_tokens: int = Field(examples=[32])
    codebook_size: int = Field(examples=[4096])
    data: list[EncodedItem]


class EncodedLatents(BaseModel):
    """Latents of an image."""

    index: Index
    latents: Base64Latents = Field(examples=["AACAPwAAAEAAAEBA..."])
    original_size: Size
    cached: bool = Field(description="Whether the latents were in the cache.", examples=[False])


class LatentsResponse(OfRevision):
    """Latents of images, and the tokenizer that made them."""

    shape: LatentShape
    dtype: LatentDtype = Field(examples=["float32"])
    data: list[EncodedLatents]


class LookupRequest(StrictRequest):
    """SHA-256 digests of image files."""

    sha256: list[Annotated[str, WithJsonSchema({"type": "string", "pattern": SHA256_PATTERN})]] = Field(
        min_length=1, max_length=MAX_DIGESTS, description="Digests in hexadecimal."
    )


class KnownCode(BaseModel):
    """Tokens of an image in the cache."""

    sha256: str = Field(examples=[EXAMPLE_SHA256])
    tokens: TokenIds
    code: Code
    original_size: Size


class LookupResponse(OfRevision):
    """Cached codes, and the digests that are not in the cache."""

    data: list[KnownCode]
    missing: list[str] = Field(description="Digests that are not in the cache.", examples=[[]])
