"""JSON bodies that describe the models served."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.codes.latents import DTYPES
from service.api.schemas.base import EXAMPLE_REVISION, LatentDtype, LatentShape, ModelName


class SamplingValues(BaseModel):
    """Sampling settings of a preset."""

    model_config = ConfigDict(from_attributes=True)

    steps: int
    guidance_scale: float
    guidance_decay: str
    guidance_power: float
    temperature: float
    token_temperature: float | None
    softmax_annealing: bool


class GeneratorEntry(BaseModel):
    """A generator."""

    revision: str = Field(examples=["dc6b540e3b9e"])
    num_classes: int = Field(examples=[43])
    presets: dict[str, SamplingValues] = Field(examples=[{}])


class Limits(BaseModel):
    """Limits of one request."""

    model_config = ConfigDict(from_attributes=True)

    max_body_bytes: int = Field(examples=[33554432])
    max_json_bytes: int = Field(examples=[16777216])
    max_pixels: int = Field(examples=[40000000])
    max_images: int = Field(examples=[64])
    max_generate: int = Field(examples=[16])


class LatentsEntry(BaseModel):
    """The vectors of an image before quantization, of a VAE its tokens."""

    shape: LatentShape = Field(examples=[(32, 12)])
    dtypes: tuple[LatentDtype, ...] = Field(description="Number formats, the default first.", examples=[DTYPES])


class ModelEntry(BaseModel):
    """A tokenizer and its generator. A VAE has vectors instead of token ids: numbers about codes are 0."""

    id: ModelName
    object: Literal["model"] = Field("model", description="As in OpenAI's API.")
    created: int = Field(description="Unix time at which this process was started.", examples=[1767225600])
    owned_by: str = Field("titok", description="As in OpenAI's API.")
    revision: str = Field(examples=[EXAMPLE_REVISION])
    kind: Literal["vq", "vae"] = Field(examples=["vq"])
    image_size: int = Field(examples=[128])
    num_tokens: int = Field(examples=[32])
    min_tokens: int = Field(description="The fewest tokens that decode to an image.", examples=[1])
    prefix_decodable: bool = Field(description="Whether codes may be cut to fewer tokens.", examples=[True])
    codebook_size: int = Field(examples=[4096])
    bits_per_token: int = Field(examples=[12])
    code_bytes: int = Field(examples=[48])
    code_characters: int = Field(examples=[64])
    latents: LatentsEntry
    precision: dict[str, str] = Field(examples=[{"encoder": "float32", "decoder": "bfloat16", "generator": "float32"}])
    generator: GeneratorEntry | None
    limits: Limits


class ModelList(BaseModel):
    """The models served."""

    object: Literal["list"] = Field("list", description="As in OpenAI's API.")
    data: list[ModelEntry]


class ClassEntry(BaseModel):
    """A class of the generator."""

    id: int = Field(examples=[10])
    name: str = Field(examples=["cat"])
    names: list[str] = Field(description="All accepted names.", examples=[["cat"]])


class ClassList(BaseModel):
    """The classes of a generator."""

    model: ModelName
    data: list[ClassEntry]
