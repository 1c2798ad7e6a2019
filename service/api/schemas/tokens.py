"""JSON bodies of encode and of look-ups."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.api.schemas.base import (
    EXAMPLE_CODE,
    EXAMPLE_TOKENS,
    MAX_DIGESTS,
    MAX_ITEMS,
    SHA256_PATTERN,
    Size,
    StrictRequest,
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

    index: int = Field(description="Position of the image in the request.")
    tokens: list[int] = Field(description="Token ids.", examples=[EXAMPLE_TOKENS])
    code: str = Field(description="Packed token ids in URL-safe base64.", examples=[EXAMPLE_CODE])
    original_size: Size
    cached: bool = Field(description="Whether the code was in the cache.")


class EncodeResponse(BaseModel):
    """Tokens of images, and the tokenizer that made them."""

    model: str = Field(examples=["titok-mini-32"])
    revision: str = Field(description="Revision of the tokenizer. It changes when the same image may get other tokens.")
    num_tokens: int
    codebook_size: int
    data: list[EncodedItem]


class LookupRequest(StrictRequest):
    """SHA-256 digests of image files."""

    sha256: list[Annotated[str, WithJsonSchema({"type": "string", "pattern": SHA256_PATTERN})]] = Field(
        min_length=1, max_length=MAX_DIGESTS, description="Digests in hexadecimal."
    )


class KnownCode(BaseModel):
    """Tokens of an image in the cache."""

    sha256: str
    tokens: list[int] = Field(description="Token ids.", examples=[EXAMPLE_TOKENS])
    code: str = Field(description="Packed token ids in URL-safe base64.", examples=[EXAMPLE_CODE])
    original_size: Size


class LookupResponse(BaseModel):
    """Cached codes, and the digests that are not in the cache."""

    model: str = Field(examples=["titok-mini-32"])
    revision: str = Field(description="Revision of the tokenizer. It changes when the same image may get other tokens.")
    data: list[KnownCode]
    missing: list[str] = Field(description="Digests that are not in the cache.")
