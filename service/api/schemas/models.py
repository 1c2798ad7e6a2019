"""JSON bodies that describe the models served."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
    """A generator."""

    revision: str
    num_classes: int
    presets: dict[str, SamplingValues]


class Limits(BaseModel):
    """Limits of one request."""

    max_body_bytes: int
    max_json_bytes: int
    max_pixels: int
    max_images: int
    max_generate: int


class ModelEntry(BaseModel):
    """A tokenizer and its generator."""

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
    """The models served."""

    data: list[ModelEntry]


class ClassEntry(BaseModel):
    """A class of the generator."""

    id: int
    name: str
    names: list[str] = Field(description="All accepted names.")


class ClassList(BaseModel):
    """The classes of a generator."""

    model: str
    data: list[ClassEntry]
