"""The JSON bodies of the API: what is taken and what is given."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from models.sampling.settings import MAX_STEPS
from service.http.problems import InvalidRequest, MalformedBody, ProblemDetail

__all__ = [
    "CODE_PATTERN",
    "EXAMPLE_CODE",
    "EXAMPLE_REVISION",
    "EXAMPLE_TOKENS",
    "MAX_DIGESTS",
    "SHA256_PATTERN",
    "Base64Images",
    "ClassEntry",
    "ClassList",
    "DecodeRequest",
    "DecodeResponse",
    "DecodedItem",
    "EncodeResponse",
    "EncodedItem",
    "GenerateRequest",
    "GenerateResponse",
    "GeneratedItem",
    "GenerationFacts",
    "GeneratorEntry",
    "ImageFormat",
    "ImageObject",
    "ImagesRequest",
    "ImagesResponse",
    "KnownCode",
    "Limits",
    "LookupRequest",
    "LookupResponse",
    "MixRequest",
    "MixResponse",
    "ModelEntry",
    "ModelList",
    "Quality",
    "ReconstructResponse",
    "SamplingValues",
    "Size",
    "StepEvent",
    "parse_body",
]

ImageFormat = Literal["jpeg", "png", "webp"]

# The shipped tokenizer's.
EXAMPLE_REVISION = "669c30a356f0-p1"
EXAMPLE_CODE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"
EXAMPLE_TOKENS = [0, 258, 48, 1029, 96, 1800, 144, 2571, 192, 3342, 241, 17, 289, 788, 337, 1559]
EXAMPLE_TOKENS += [385, 2330, 433, 3101, 481, 3872, 530, 547, 578, 1318, 626, 2089, 674, 2860, 722, 3631]

CODE_PATTERN = "^[A-Za-z0-9_-]+$"
"""What a code consists of; how long it is depends on the tokenizer."""

SHA256_PATTERN = "^[0-9a-fA-F]{64}$"
MAX_DIGESTS = 1000
"""Of one look-up."""


def _exactly_one(**types: str) -> dict[str, Any]:
    """The JSON Schema of an object with exactly one of some members, each of a type; null counts as absent."""
    return {
        "oneOf": [
            {
                "required": [name],
                "properties": {
                    name: {"type": kind},
                    **{other: {"type": "null"} for other in types if other != name},
                },
            }
            for name, kind in types.items()
        ]
    }


def _or_null(schema: dict[str, Any]) -> WithJsonSchema:
    """What the OpenAPI document says of a member that the service checks by itself."""
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}]})


class _Request(BaseModel):
    """Strict: no member is converted silently, none is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Base64Images(_Request):
    """Images in a JSON body, as one of the two members. Raw bytes, or a form of files, are faster."""

    model_config = ConfigDict(json_schema_extra=_exactly_one(image="string", images="array"))

    image: str | None = Field(None, description="One image: base64, or a data URI.")
    images: Annotated[list[str] | None, _or_null({"type": "array", "items": {"type": "string"}, "minItems": 1})] = (
        Field(None, description="Several images: base64, or data URIs.")
    )


class Size(BaseModel):
    """Pixels of an image as a viewer shows it."""

    width: int
    height: int


class EncodedItem(BaseModel):
    """An image's tokens."""

    index: int = Field(description="Position of the image in the request.")
    tokens: list[int] = Field(description="Token ids.", examples=[EXAMPLE_TOKENS])
    code: str = Field(description="The ids packed, in URL-safe base64.", examples=[EXAMPLE_CODE])
    original_size: Size
    cached: bool = Field(description="Whether the code was known already.")


class EncodeResponse(BaseModel):
    """Tokens of images, with the tokenizer that gives them their meaning."""

    model: str = Field(examples=["titok-mini-32"])
    revision: str = Field(description="Changes whenever the same image may get other tokens.")
    num_tokens: int
    codebook_size: int
    data: list[EncodedItem]


class LookupRequest(_Request):
    """Images by the SHA-256 of their files."""

    sha256: list[Annotated[str, WithJsonSchema({"type": "string", "pattern": SHA256_PATTERN})]] = Field(
        min_length=1, description="Digests in hexadecimal.", json_schema_extra={"maxItems": MAX_DIGESTS}
    )


class KnownCode(BaseModel):
    """The tokens of an image that was seen before."""

    sha256: str
    tokens: list[int] = Field(description="Token ids.", examples=[EXAMPLE_TOKENS])
    code: str = Field(description="The ids packed, in URL-safe base64.", examples=[EXAMPLE_CODE])
    original_size: Size


class LookupResponse(BaseModel):
    """What is known of the images asked for; the others have to be sent."""

    model: str = Field(examples=["titok-mini-32"])
    revision: str = Field(description="Changes whenever the same image may get other tokens.")
    data: list[KnownCode]
    missing: list[str] = Field(description="Digests that are not known.")


_CODE = {"type": "string", "pattern": CODE_PATTERN}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class DecodeRequest(_Request):
    """Tokens or codes of one image or of several; exactly one of `tokens`, `code` and `codes`."""

    model_config = ConfigDict(json_schema_extra=_exactly_one(tokens="array", code="string", codes="array"))

    tokens: Annotated[Any, _or_null({"anyOf": [_IDS, {"type": "array", "items": _IDS, "minItems": 1}]})] = Field(
        None, description="Token ids of one image, or a list of such lists.", examples=[[EXAMPLE_TOKENS]]
    )
    code: Annotated[Any, _or_null(_CODE)] = Field(None, description="One code.", examples=[EXAMPLE_CODE])
    codes: Annotated[Any, _or_null({"type": "array", "items": _CODE, "minItems": 1})] = Field(
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


class GenerateRequest(_Request):
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


class ImagesRequest(_Request):
    """What OpenAI's Images API is asked for; members that mean nothing here are ignored, as clients send them unasked."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(max_length=4000, description="The name of a class.", examples=["golden retriever"])
    n: int | None = Field(None, ge=1, description="How many images; 1 if absent.")
    size: Annotated[str | None, _or_null({"type": "string", "pattern": "^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"})] = (
        Field(None, description="'auto', or a square such as '512x512'.", examples=["auto"])
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Both if absent.")
    output_format: ImageFormat | None = Field(None, description="PNG if absent.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    model: str | None = Field(None, description="The generator; another one's name is refused.")
    stream: Annotated[bool | None, _or_null({"const": False})] = Field(None, description="Not offered.")


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


class SamplingValues(BaseModel):
    """Sampling settings of a preset."""

    model_config = ConfigDict(from_attributes=True)

    steps: int
    guidance_scale: float
    guidance_decay: str
    guidance_power: float
    temperature: float
    softmax_annealing: bool


class GeneratorEntry(BaseModel):
    """The generator served."""

    revision: str
    num_classes: int
    presets: dict[str, SamplingValues]


class Limits(BaseModel):
    """What one request may ask for."""

    max_body_bytes: int
    max_pixels: int
    max_images: int
    max_generate: int


class ModelEntry(BaseModel):
    """A tokenizer that is served, and its generator."""

    id: str
    revision: str
    image_size: int
    num_tokens: int
    codebook_size: int
    bits_per_token: int
    code_bytes: int
    code_characters: int
    precision: dict[str, str]
    generator: GeneratorEntry | None
    limits: Limits


class ModelList(BaseModel):
    """What is served."""

    data: list[ModelEntry]


class ClassEntry(BaseModel):
    """A class the generator knows."""

    id: int
    name: str
    names: list[str] = Field(description="Every name it answers to.")


class ClassList(BaseModel):
    """The classes of a generator."""

    model: str
    data: list[ClassEntry]


RequestT = TypeVar("RequestT", bound=_Request)


def parse_body(schema: type[RequestT], body: bytes) -> RequestT:
    """A JSON body as its schema. Raises ``MalformedBody`` if it is no JSON, ``InvalidRequest`` if it does not fit."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        reason = str(details[0].get("ctx", {}).get("error", details[0]["msg"]))
        raise MalformedBody(f"The body is not JSON: {reason}.", errors=[ProblemDetail(pointer="body", detail=reason)])
    places = [_place(detail) for detail in details[:16]]
    first = places[0]
    raise InvalidRequest(f"{first.pointer or 'The body'}: {first.detail}.", errors=places)


def _place(detail: ErrorDetails) -> ProblemDetail:
    # A union reports each of its members, tagged in the location; the tag is no part of the client's document.
    path = [str(part) for part in detail["loc"] if part not in ("int", "str", "constrained-int")]
    value = detail["input"]
    if detail["type"] == "missing" or isinstance(value, dict | list):
        value = None
    elif isinstance(value, str):
        value = value[:80]
    context = detail.get("ctx", {})
    expected = context.get("expected") or ", ".join(
        f"{key} {bound}" for key, bound in context.items() if key != "error"
    )
    return ProblemDetail(
        pointer="".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path),
        detail=detail["msg"],
        value=value,
        expected=str(expected) or None,
    )
