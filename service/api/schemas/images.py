"""JSON bodies of decode, mix and reconstruct."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.base import (
    CODE_PATTERN,
    EXAMPLE_CODE,
    EXAMPLE_TOKENS,
    ImageFormat,
    Size,
    StrictRequest,
    exactly_one,
    or_null,
)

__all__ = [
    "DecodeRequest",
    "DecodeResponse",
    "DecodedItem",
    "MixRequest",
    "MixResponse",
    "Quality",
    "ReconstructResponse",
]


_CODE = {"type": "string", "pattern": CODE_PATTERN}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class DecodeRequest(StrictRequest):
    """Tokens or codes of one image or of several; exactly one of `tokens`, `code` and `codes`."""

    model_config = ConfigDict(json_schema_extra=exactly_one(tokens="array", code="string", codes="array"))

    tokens: Annotated[Any, or_null({"anyOf": [_IDS, {"type": "array", "items": _IDS, "minItems": 1}]})] = Field(
        None, description="Token ids of one image, or a list of such lists.", examples=[[EXAMPLE_TOKENS]]
    )
    code: Annotated[Any, or_null(_CODE)] = Field(None, description="One code.", examples=[EXAMPLE_CODE])
    codes: Annotated[Any, or_null({"type": "array", "items": _CODE, "minItems": 1})] = Field(
        None, description="Several codes."
    )
    model: str | None = Field(None, description="The tokenizer that made them; another one's are refused.")
    revision: str | None = Field(None, description="Its revision; another one's are refused.")
    format: ImageFormat | None = Field(None, description="Image format, where the answer is JSON or multipart.")
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(None, description="Of JPEG and WebP; 90 if absent.")


class MixRequest(DecodeRequest):
    """Tokens or codes of several images, and how they are mixed."""

    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="How much each image counts; equal if absent. Only their ratios matter.",
        examples=[[0.7, 0.3]],
    )
    positions: list[int | None] | None = Field(
        None, description="For each token the index of the image whose token it takes; null for the weighted mean."
    )


class MixResponse(BaseModel):
    """The mixed tokens and their image."""

    model: str
    revision: str
    tokens: list[int]
    code: str
    image: str = Field(description="The image file in base64.")
    content_type: str


class DecodedItem(BaseModel):
    """One image in a JSON answer."""

    index: int
    b64: str = Field(description="The image file in base64.")
    content_type: str = Field(examples=["image/jpeg"])


class DecodeResponse(BaseModel):
    """Images in a JSON answer."""

    model: str
    revision: str
    data: list[DecodedItem]


class Quality(BaseModel):
    """How close a reconstruction is to the (resized and cropped) original."""

    psnr: float | None = Field(description="Peak signal-to-noise ratio, dB; null for an exact copy.")
    ssim: float = Field(description="Structural similarity, at most 1.")


class ReconstructResponse(BaseModel):
    """An image after its tokens."""

    model: str
    revision: str
    tokens: list[int]
    code: str
    code_bytes: int
    original_size: Size
    quality: Quality
    image: str = Field(description="The reconstruction in base64.")
    content_type: str
