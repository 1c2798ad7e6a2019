"""Information on the served models, as plain values that a worker sends to the front ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.codes.code_format import CodeFormat
from models.codes.latents import LatentFormat
from models.sampling.settings import SamplingSettings
from service.engine.protocol import LaneName
from service.errors import ServiceError


class NoTokenIds(ServiceError):
    """An operation on token ids, which the tokenizer served does not have: it is a VAE."""


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """Information on a generator."""

    revision: str
    class_names: tuple[str, ...]
    presets: Mapping[str, SamplingSettings]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Information on the tokenizer, its device and its generator. ``codes`` is the format of token ids, None for a VAE.
    ``batch_limits`` are the largest useful batches of the device by lane. ``codebook``: code vectors by id, float32 [V, C];
    empty where codes cannot be mixed.
    """

    name: str
    revision: str
    image_size: int
    codes: CodeFormat | None
    latent_format: LatentFormat
    device: str
    precision: Mapping[str, str]
    source: str
    generator: GeneratorInfo | None
    batch_limits: Mapping[LaneName, int]
    codebook: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32), repr=False, compare=False
    )

    @cached_property
    def code_format(self) -> CodeFormat:
        """The format of token ids. Raises ``NoTokenIds`` for a VAE."""
        if self.codes is None:
            raise NoTokenIds(
                f"{self.name} is a VAE: its tokens are vectors, not ids with codes. /v1/encode and /v1/decode have them."
            )
        return self.codes
