"""JSON bodies of generate, and of generate in the form of OpenAI's Images API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from models.sampling.settings import MAX_STEPS
from service.api.schemas.base import (
    EXAMPLE_CODE,
    EXAMPLE_REVISION,
    EXAMPLE_TOKENS,
    Base64File,
    Code,
    ImageFormat,
    Index,
    MediaType,
    Name,
    OfRevision,
    StrictRequest,
    TokenIds,
    or_null,
)


class GenerateRequest(StrictRequest):
    """Settings of a generation. Absent settings are taken from the preset."""

    class_: Annotated[int, Field(strict=True)] | Name | None = Field(
        None,
        alias="class",
        validation_alias=AliasChoices("class", "class_id"),
        description="Class id or name; null for no class.",
        examples=["golden retriever"],
    )
    n: int = Field(1, ge=1, description="Number of images. The limit is in `/v1/models`.")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Random seed. Image i has the seed `seed + i`. Random if absent.",
    )
    preset: Literal["published", "demo", "fast"] = Field("demo", description="Named sampling settings.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Number of sampling steps.")
    guidance_scale: float | None = Field(None, ge=0, le=50, description="Strength of classifier-free guidance.")
    guidance_decay: Literal["constant", "linear", "power-cosine"] | None = Field(
        None, description="Schedule of the guidance scale over the steps."
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Scale of the noise on the choice of positions, and of tokens if there is no `token_temperature`; "
        "falls to 0 at the last step.",
    )
    token_temperature: float | None = Field(
        None, ge=0, le=100, description="Softmax temperature of the choice of tokens, the same in every step."
    )
    model: Name | None = Field(None, description="Name of the generator. Must be the one served.")
    format: ImageFormat | None = Field(None, description="Image format in JSON responses.")
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Quality of JPEG and WebP. Default: 90."
    )
    preview: bool = Field(False, description="Include previews in step events. Requires `Accept: text/event-stream`.")


class GeneratedItem(BaseModel):
    """A generated image."""

    index: Index
    tokens: TokenIds
    code: Code
    seed: int = Field(examples=[7])
    image: Base64File
    content_type: MediaType


class GenerationFacts(OfRevision):
    """Everything but the seeds that is needed to reproduce images."""

    generator_revision: str = Field(examples=["dc6b540e3b9e"])
    class_id: int | None = Field(examples=[10])
    class_name: str | None = Field(examples=["cat"])
    settings: dict[str, Any] = Field(
        description="The sampling settings of the preset, with the changes of the request.",
        examples=[
            {
                "steps": 8,
                "guidance_scale": 9.0,
                "guidance_decay": "linear",
                "guidance_power": 3.0,
                "temperature": 8.0,
                "token_temperature": 1.0,
                "softmax_annealing": False,
            }
        ],
    )


class GenerateResponse(GenerationFacts):
    """Generated images, and what is needed to reproduce them."""

    data: list[GeneratedItem]


class StepEvent(BaseModel):
    """State of an image after a sampling step. `image` and `content_type` are present if there is a preview."""

    index: Index
    step: int = Field(description="Number of this step, from 1.", examples=[1])
    steps: int = Field(description="Total number of steps.", examples=[20])
    tokens: list[int | None] = Field(
        description="Token ids; null if not yet known.", examples=[[*EXAMPLE_TOKENS[:2], *[None] * 30]]
    )
    known: int = Field(description="Number of known tokens.", examples=[2])
    image: str | None = Field(None, description="Preview of the current prediction of all tokens: JPEG in base64.")
    content_type: str | None = None


class ImagesRequest(StrictRequest):
    """A request of OpenAI's Images API. Members that are not listed are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(max_length=4000, description="Name of a class.", examples=["golden retriever"])
    n: int | None = Field(None, ge=1, description="Number of images. Default: 1.")
    size: Annotated[str | None, or_null({"type": "string", "pattern": "^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"})] = (
        Field(None, description="'auto', or a square such as '512x512'.", examples=["auto"])
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Default: both.")
    output_format: ImageFormat | None = Field(None, description="Default: PNG.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    model: Name | None = Field(None, description="Name of the generator. Must be the one served.")
    stream: Annotated[bool | None, or_null({"const": False})] = Field(None, description="Not supported.")


class ImageObject(BaseModel):
    """An image in OpenAI's form, with its code and seed."""

    b64_json: str | None = Field(
        None,
        description="Image file in base64; absent if `response_format` is `url`.",
        examples=["iVBORw0KGgoAAAANSUhEUgAA..."],
    )
    url: str | None = Field(
        None,
        description="URL of the image; absent if `response_format` is `b64_json`.",
        examples=[f"http://127.0.0.1:8000/v1/images/titok-mini-32@{EXAMPLE_REVISION}/{EXAMPLE_CODE}.png"],
    )
    revised_prompt: str = Field(examples=["cat"])
    code: Code
    seed: int = Field(examples=[7])


class ImagesResponse(BaseModel):
    """Images in OpenAI's form."""

    created: int = Field(description="Unix time in seconds.", examples=[1760000000])
    output_format: str = Field(examples=["png"])
    size: str = Field(examples=["128x128"])
    data: list[ImageObject]
