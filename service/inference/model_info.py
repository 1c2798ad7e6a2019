"""What is served, as plain values: they come from the process that runs the models to those that answer requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.codes.code_format import CodeFormat
from models.sampling.settings import SamplingSettings

__all__ = ["GeneratorInfo", "ModelInfo"]


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """What routes need to know of a generator."""

    revision: str
    class_names: tuple[str, ...]
    presets: Mapping[str, SamplingSettings]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What routes and the engine need to know of the models. ``batch_limits`` says, by lane (``encode``, ``decode``,
    ``generate``), how many images one batch of the device is worth having. ``codebook`` holds the codes that ids stand
    for, float32 [V, C]; empty where codes cannot be mixed.
    """

    name: str
    revision: str
    image_size: int
    code_format: CodeFormat
    device: str
    precision: Mapping[str, str]
    source: str
    generator: GeneratorInfo | None
    batch_limits: Mapping[str, int]
    codebook: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32), repr=False, compare=False
    )
