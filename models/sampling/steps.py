"""One MaskGIT sampling step for a batch whose rows have different seeds, labels, settings and step counters.

::

    all masked -> [ logits -> guidance -> sample -> keep the confident tokens, mask the rest ] x steps -> ids

A step is a pure function of the rows' states, the logits, and noise derived from (seed, step), so the result for a row
does not depend on the other rows of the batch. Row states are copied to the device as one table (``pack_rows``).

Source: MaskGIT (arXiv 2202.04200, section 3.2), TiTok (arXiv 2406.07550, section 4.1), and the published sampler
(1d-tokenizer, commit 942a96f), which has one schedule per batch and draws noise from a global generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.sampling.settings import SamplingSettings


@dataclass(slots=True)
class SamplingRow:
    """State of an image being sampled: ``tokens`` int64 [K] on the host, the mask id where unknown, after ``step`` steps.

    ``label`` is a class id, or None for no class.
    """

    label: int | None
    seed: int
    settings: SamplingSettings
    tokens: Tensor
    step: int = 0

    @property
    def needs_unconditional(self) -> bool:
        """Whether the next step needs unconditional logits besides the conditional ones."""
        return self.label is not None and self.settings.needs_unconditional(self.step)


class StepParameters(NamedTuple):
    """Parameters of a step besides the tokens, one value per row: [R] each.

    ``label`` int64, negative for no class; ``token_key`` and ``confidence_key`` int64, keys of the row's noise;
    ``from_unconditional`` bool, whether guidance is added to the unconditional logits; ``num_masked`` int64, the number of
    tokens that stay masked; ``last`` bool, whether it is the last step; ``guidance_weight`` float32, 0 for no guidance;
    ``logit_divisor``, ``token_noise_scale`` and ``confidence_noise_scale`` float32.
    """

    label: Tensor
    token_key: Tensor
    confidence_key: Tensor
    from_unconditional: Tensor
    num_masked: Tensor
    last: Tensor
    guidance_weight: Tensor
    logit_divisor: Tensor
    token_noise_scale: Tensor
    confidence_noise_scale: Tensor


_TABLE_ROW = np.dtype([("integers", np.int64, 6), ("floats", np.float64, 4)])
"""``StepParameters`` of a row, in their order."""


def pack_rows(rows: Sequence[SamplingRow]) -> Tensor:
    """Tokens and step parameters of R rows as a table int64 [R, K + 10]; floats are stored as float64 bits."""
    tokens = torch.stack([row.tokens for row in rows])
    return torch.cat([tokens, torch.from_numpy(np.stack([_parameters_of(row) for row in rows]))], dim=1)


def _parameters_of(row: SamplingRow) -> NDArray[np.int64]:
    settings, guided = row.settings, row.needs_unconditional
    integers = (
        -1 if row.label is None else row.label,
        _key(row, "token"),
        _key(row, "confidence"),
        guided and settings.guidance_decay == "power-cosine",
        # float64 before the floor, as published: 32 * masked_fraction can be within rounding of an integer
        math.floor(np.float64(len(row.tokens)) * settings.masked_fraction(row.step)),
        row.step + 1 >= settings.steps,
    )
    floats = (
        settings.guidance_weight(row.step) if guided else 0.0,
        settings.logit_divisor(row.step),
        settings.token_noise_scale(row.step),
        settings.confidence_noise_scale(row.step),
    )
    return np.array([(integers, floats)], _TABLE_ROW).view(np.int64)


def unpack_rows(table: Tensor) -> tuple[Tensor, StepParameters]:
    """Inverse of ``pack_rows``, on any device: tokens int64 [R, K] and the parameters."""
    num_tokens = table.shape[1] - len(StepParameters._fields)
    label, token_key, confidence_key, from_unconditional, num_masked, last, *floats = table[:, num_tokens:].unbind(1)
    scalars = (bits.view(torch.float64).to(torch.float32) for bits in floats)
    flags = (from_unconditional != 0, num_masked, last != 0)
    return table[:, :num_tokens], StepParameters(label, token_key, confidence_key, *flags, *scalars)


class StepNoise(NamedTuple):
    """Uniform noise in (0, 1): ``token`` float32 [R, K, V] for choosing tokens, ``confidence`` [R, K] for masking."""

    token: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, parameters: StepParameters, num_tokens: int, codebook_size: int) -> StepNoise:
        """Noise derived from each row's seed and step, the same on every device and in every batch."""
        return cls(
            token=_uniform(parameters.token_key, num_tokens * codebook_size).view(-1, num_tokens, codebook_size),
            confidence=_uniform(parameters.confidence_key, num_tokens),
        )


def _key(row: SamplingRow, stream: str) -> int:
    digest = hashlib.blake2b(f"{row.seed}/{row.step}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# The finalizer of splitmix64 (Steele, Lea and Flood 2014) as a counter-based generator: integer arithmetic gives the
# same bits on a CPU and on a GPU, for any number of rows at once, and needs no state.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def _uniform(keys: Tensor, count: int) -> Tensor:
    """Keys int64 [R] -> float32 [R, count] on the 2**23 midpoints of (0, 1)."""
    x = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device).mul_(_INCREMENT)
    x = keys[:, None] + x
    for shift, factor in _MIX:
        # An arithmetic shift of a signed number, with the copies of its sign bit cleared, is the unsigned shift.
        x ^= (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        x *= factor
    bits = ((x >> 41) ^ (x >> 18)).bitwise_and_((1 << 23) - 1)
    return bits.to(torch.float32).add_(0.5).mul_(2.0**-23)


def _gumbel(uniform: Tensor) -> Tensor:
    exponential = -torch.log(uniform.clamp(min=1e-20))
    return -torch.log(exponential.clamp(min=1e-20))


def apply_guidance(parameters: StepParameters, conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Classifier-free guidance: conditional and unconditional logits [R, K, V] -> guided logits, divided by temperature.

    For rows without guidance, ``unconditional`` may have any finite values.
    """
    base = torch.where(parameters.from_unconditional[:, None, None], unconditional, conditional)
    guided = base + parameters.guidance_weight[:, None, None] * (conditional - unconditional)
    return guided / parameters.logit_divisor[:, None, None]


class StepOutcome(NamedTuple):
    """``tokens`` int64 [R, K] after the step; ``sampled`` before masking; ``margin`` float32 [R].

    The margin of a row is that of its closest decision: between two tokens, or between two positions to mask.
    """

    tokens: Tensor
    sampled: Tensor
    margin: Tensor


def sample_step(
    parameters: StepParameters, logits: Tensor, tokens: Tensor, noise: StepNoise, *, mask_token: int
) -> StepOutcome:
    """One step of all rows, from guided logits [R, K, V] and tokens int64 [R, K], which are not changed."""
    num_tokens, last = tokens.shape[1], parameters.last
    noisy = logits + parameters.token_noise_scale[:, None, None] * _gumbel(noise.token)
    best, chosen = noisy.max(dim=2)
    masked = tokens == mask_token
    sampled = torch.where(masked, chosen, tokens)
    runner_up = noisy.scatter_(2, chosen[:, :, None], -torch.inf).amax(dim=2)
    margin = torch.where(masked, best - runner_up, torch.inf).amin(dim=1)

    # Known tokens are never masked again: their confidence is infinite.
    score = torch.where(masked, logits.gather(2, chosen[:, :, None])[:, :, 0], torch.inf)
    confidence = score + parameters.confidence_noise_scale[:, None] * _gumbel(noise.confidence)
    to_mask = torch.minimum(parameters.num_masked, masked.sum(dim=1) - 1).clamp(min=1)
    ordered = confidence.sort(dim=1).values
    threshold = ordered.gather(1, to_mask[:, None] - 1)
    next_up = ordered.gather(1, to_mask[:, None].clamp(max=num_tokens - 1))
    remask = (confidence <= threshold) & ~last[:, None]
    gap = torch.where(last, torch.inf, (next_up - threshold)[:, 0])
    return StepOutcome(torch.where(remask, mask_token, sampled), sampled, torch.minimum(margin, gap))
