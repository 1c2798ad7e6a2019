"""Parts that the JSON schemas of the API share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

ImageFormat = Literal["jpeg", "png", "webp"]
LatentDtype = Literal["float32", "float16"]

# The shipped tokenizer's.
EXAMPLE_REVISION = "9d73d749cf51-p2cs"
EXAMPLE_CODE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v"
EXAMPLE_TOKENS = [0, 258, 48, 1029, 96, 1800, 144, 2571, 192, 3342, 241, 17, 289, 788, 337, 1559]
EXAMPLE_TOKENS += [385, 2330, 433, 3101, 481, 3872, 530, 547, 578, 1318, 626, 2089, 674, 2860, 722, 3631]
EXAMPLE_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

CODE_PATTERN = "^[A-Za-z0-9_-]+$"
"""Pattern of a code; its length depends on the tokenizer."""

SHA256_PATTERN = "^[0-9a-fA-F]{64}$"
MAX_DIGESTS = 1000
"""Maximum of one look-up."""

MAX_ITEMS = 4096
"""Maximum entries of any other list: the largest ``TITOK_MAX_IMAGES``."""

Name = Annotated[str, Field(max_length=200)]
"""Name of a model, a revision or a class."""

ModelName = Annotated[str, Field(examples=["titok-mini-32"])]
TokenIds = Annotated[list[int], Field(description="Token ids.", examples=[EXAMPLE_TOKENS])]
Code = Annotated[str, Field(description="Packed token ids in URL-safe base64.", examples=[EXAMPLE_CODE])]
Base64File = Annotated[str, Field(description="Image file in base64.", examples=["/9j/4AAQSkZJRgABAQAAAQABAAD..."])]
Base64Latents = Annotated[str, Field(description="Latents in base64: little-endian numbers, row by row.")]
LatentShape = Annotated[
    tuple[int, int], Field(description="Number of vectors, and numbers in each.", examples=[(128, 16)])
]
MediaType = Annotated[str, Field(examples=["image/jpeg"])]
Index = Annotated[int, Field(description="Position of the image, from 0.", examples=[0])]


def exactly_one(**types: str) -> dict[str, Any]:
    """JSON Schema of an object with exactly one of these members, given with their types; null counts as absent."""
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


def or_null(schema: dict[str, Any]) -> WithJsonSchema:
    """OpenAPI schema of an optional member that the service validates itself."""
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}]})


class StrictRequest(BaseModel):
    """A request body. Types are not converted, and unknown members are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Size(BaseModel):
    """Width and height in pixels, after applying the EXIF orientation."""

    width: int = Field(examples=[600])
    height: int = Field(examples=[400])


class OfRevision(BaseModel):
    """A response about tokens, and the tokenizer that they belong to."""

    model: ModelName
    revision: str = Field(
        description="Revision of the tokenizer. It changes when the same image may get other tokens.",
        examples=[EXAMPLE_REVISION],
    )
