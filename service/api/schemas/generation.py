"""JSON bodies of generate, and of generate in the form of OpenAI's Images API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.sampling.settings import MAX_STEPS
from service.api.schemas.base import ImageFormat, StrictRequest, or_null

__all__ = [
    "GenerateRequest",
    "GenerateResponse",
    "GeneratedItem",
    "GenerationFacts",
    "ImageObject",
    "ImagesRequest",
    "ImagesResponse",
    "StepEvent",
]


class GenerateRequest(StrictRequest):
    """What to make. Members that are absent come from the preset."""

    class_: Annotated[int, Field(strict=True)] | str | None = Field(
        None,
        alias="class",
        description="Class by id or by name; null for an image of no class.",
        examples=["golden retriever"],
    )
    n: int = Field(1, ge=1, description="How many images; GET /v1/models tells the limit.")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="The same seed gives the same image. Image i takes seed + i. Random if absent.",
    )
    preset: Literal["published", "demo", "fast"] = Field("demo", description="Named settings.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Sampling steps.")
    guidance_scale: float | None = Field(None, ge=0, le=50, description="How strongly the class is followed.")
    guidance_decay: Literal["constant", "linear", "power-cosine"] | None = Field(
        None, description="How guidance changes over the steps."
    )
    temperature: float | None = Field(None, ge=0, le=100, description="How much chance there is in the choices.")
    model: str | None = Field(None, description="The generator; another one's name is refused.")
    format: ImageFormat | None = Field(None, description="Image format, where the answer is JSON.")
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(None, description="Of JPEG and WebP; 90 if absent.")
    preview: bool = Field(
        False, description="Whether steps carry a picture of what they guess; with Accept: text/event-stream only."
    )


class GeneratedItem(BaseModel):
    """A new image."""

    index: int
    tokens: list[int]
    code: str
    seed: int
    image: str = Field(description="The image file in base64.")
    content_type: str


class GenerationFacts(BaseModel):
    """What makes images again, beside their seeds: model, revisions, class and settings."""

    model: str
    revision: str
    generator_revision: str
    class_id: int | None
    class_name: str | None
    settings: dict[str, Any]


class GenerateResponse(GenerationFacts):
    """New images, with what makes them again."""

    data: list[GeneratedItem]


class StepEvent(BaseModel):
    """An image after a sampling step; ``image`` and ``content_type`` are there where a preview is."""

    index: int
    step: int = Field(description="Steps done, from 1.")
    steps: int = Field(description="Steps in all.")
    tokens: list[int | None] = Field(description="Token ids; null where not known yet.")
    known: int = Field(description="How many are known.")
    image: str | None = Field(None, description="A picture of the guess of every token: JPEG in base64.")
    content_type: str | None = None


class ImagesRequest(StrictRequest):
    """What OpenAI's Images API is asked for; members that mean nothing here are ignored, as clients send them unasked."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(max_length=4000, description="The name of a class.", examples=["golden retriever"])
    n: int | None = Field(None, ge=1, description="How many images; 1 if absent.")
    size: Annotated[str | None, or_null({"type": "string", "pattern": "^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"})] = (
        Field(None, description="'auto', or a square such as '512x512'.", examples=["auto"])
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Both if absent.")
    output_format: ImageFormat | None = Field(None, description="PNG if absent.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    model: str | None = Field(None, description="The generator; another one's name is refused.")
    stream: Annotated[bool | None, or_null({"const": False})] = Field(None, description="Not offered.")


class ImageObject(BaseModel):
    """An image as OpenAI's clients read it, with its code and seed."""

    b64_json: str | None = Field(
        None, description="The image file in base64; absent if only its address was asked for."
    )
    url: str | None = Field(None, description="Its address; absent if only base64 was asked for.")
    revised_prompt: str
    code: str
    seed: int


class ImagesResponse(BaseModel):
    """Images as OpenAI's clients read them."""

    created: int = Field(description="Seconds since 1970.")
    output_format: str
    size: str
    data: list[ImageObject]
