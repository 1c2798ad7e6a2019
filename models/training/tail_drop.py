"""Nested dropout of the tail: of each image only the first tokens reach the decoder, so that every prefix decodes.

Source: One-D-Piece's Tail Token Drop (arXiv 2501.10064); the principle is nested dropout (arXiv 1402.0915). Dropped tokens
are absent from the decoder's sequence; the quantizer's losses are those of all K tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ConfigError
from models.networks.titok import TiTokConfig
from models.runtime.transfers import to_device
from models.training.config import PrefixConfig
from models.training.distributed import own_rows, world_size
from models.training.task import Step


class TailDrop:
    """Draws the lengths of a :class:`PrefixConfig` for a network. Raises ``ConfigError`` if they do not fit it."""

    def __init__(self, config: PrefixConfig, network: TiTokConfig) -> None:
        if network.min_latent_tokens is None:
            raise ConfigError("section prefix needs network.min_latent_tokens, the shortest length that is trained")
        self._config, self._longest, self._shortest = config, network.num_latent_tokens, network.min_latent_tokens
        lengths = config.lengths or range(self._shortest, self._longest + 1)
        wrong = [length for length in lengths if not self._shortest <= length <= self._longest]
        if wrong:
            raise ConfigError(f"prefix.lengths are {self._shortest} to {self._longest}, not {wrong[0]}")
        self._lengths = torch.tensor([*lengths])

    def __call__(self, codes: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """Codes [B, K, C] of this process -> the first [B, L, C] of them and None, where the batch has one length; else all
        of them, and which the decoder sees: bool [B, K].
        """
        if self._config.each == "batch":
            return codes[:, : int(self.draw(1, step))], None
        count = len(codes) * world_size()
        lengths = self.draw(count, step)[own_rows(count), None]
        return codes, to_device(torch.arange(self._longest) < lengths, codes.device)

    def perceptual_weights(self, codes: Tensor, present: Tensor | None) -> Tensor | None:
        """Factors [B] of the perceptual and the semantic loss for what a call returned, or None if all are 1."""
        if self._config.perceptual_exponent == 0:
            return None
        lengths = codes.new_full((len(codes),), codes.shape[1]) if present is None else present.sum(dim=1)
        return (lengths.float() / self._longest) ** self._config.perceptual_exponent

    def draw(self, count: int, step: Step) -> Tensor:
        """Lengths of a step, int64 [count]."""
        config = self._config
        chosen = self._lengths[torch.randint(len(self._lengths), (count,), generator=step.generator)]
        if step.progress < config.curriculum_until:  # from K down to the shortest
            least = self._longest - (self._longest - self._shortest) * step.progress / config.curriculum_until
            chosen = chosen.clamp(min=round(least))
        full_share = config.full_share + (config.final_full_share - config.full_share) * step.progress
        is_full = torch.rand(count, generator=step.generator) < full_share
        return torch.where(is_full, self._longest, chosen)
