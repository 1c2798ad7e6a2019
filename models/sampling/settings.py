"""Sampling settings of an image, and the schedules of guidance, masking, noise and temperature they define.

Without torch, so that processes without networks can use it. Source: MaskGIT (arXiv
2202.04200, section 3.2), TiTok (arXiv 2406.07550, section 4.1), and the published sampler (1d-tokenizer, commit 942a96f).
"""

import math
from dataclasses import dataclass
from typing import Literal

MAX_STEPS = 256

GuidanceDecay = Literal["constant", "linear", "power-cosine"]


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Sampling settings of one image.

    ``guidance_scale`` (0..50) is defined as in the published code: with ``constant`` and ``linear`` decay the logits
    are c + w (c - u), with ``power-cosine`` u + w (c - u). ``temperature`` (0..100) scales the noise on the choice of
    tokens and of positions, and falls linearly to 0 at the last step. With ``token_temperature`` (0..100) it scales the
    noise on positions only, and tokens are drawn from softmax(logits / token_temperature) in every step; None is the
    published sampler. ``softmax_annealing`` divides the logits by a number that falls from about 1.3 to 0.5.
    """

    steps: int
    guidance_scale: float
    guidance_decay: GuidanceDecay = "constant"
    guidance_power: float = 3.0
    temperature: float = 1.0
    token_temperature: float | None = None
    softmax_annealing: bool = False

    def __post_init__(self) -> None:
        _check_range("steps", self.steps, 1, MAX_STEPS)
        _check_range("guidance_scale", self.guidance_scale, 0.0, 50.0)
        _check_range("guidance_power", self.guidance_power, 0.1, 10.0)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        if self.token_temperature is not None:
            _check_range("token_temperature", self.token_temperature, 0.0, 100.0)

    def guidance_weight(self, step: int) -> float:
        """The factor of (c - u) at a step in 0..steps-1. A linear decay starts at 0: one forward pass, no guidance."""
        progress = step / self.steps
        if self.guidance_decay == "linear":
            return self.guidance_scale * progress
        if self.guidance_decay == "power-cosine":
            ramp = 0.5 * (1.0 - math.cos(math.pi * progress**self.guidance_power))
            return 1.0 + (self.guidance_scale - 1.0) * ramp
        return self.guidance_scale

    def needs_unconditional(self, step: int) -> bool:
        """Whether a step needs unconditional logits."""
        return self.guidance_weight(step) != 0.0

    def masked_fraction(self, step: int) -> float:
        """The fraction of tokens masked after a step: the arccos schedule, 0 after the last step."""
        return math.acos((step + 1) / self.steps) / (math.pi / 2)

    def confidence_noise_scale(self, step: int) -> float:
        """Factor of the Gumbel noise on the choice of positions at a step; 0 at the last step."""
        return self.temperature * (1.0 - (step + 1) / self.steps)

    def token_noise_scale(self, step: int) -> float:
        """Factor of the Gumbel noise on the choice of tokens at a step."""
        return self.confidence_noise_scale(step) if self.token_temperature is None else self.token_temperature

    def logit_divisor(self, step: int) -> float:
        """Softmax temperature at a step."""
        return 0.5 + 0.8 * (1.0 - (step + 1) / self.steps) if self.softmax_annealing else 1.0


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is out of range {low}..{high}")
