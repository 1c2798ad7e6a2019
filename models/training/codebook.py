"""Keeps a codebook in use: seeded from latents when the quantizer sets in, idle codes seeded anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.networks.titok import TiTok
from models.training.config import CodebookConfig
from models.training.distributed import all_rows, mean_of
from models.training.loop import Step

__all__ = ["Codebook"]


class Codebook:
    """The quantizer of a network in training, and for how many steps each code has been ``idle`` (int64 [V])."""

    def __init__(self, network: TiTok, config: CodebookConfig) -> None:
        self.quantizer = network.quantize
        self.config = config
        weight = self.quantizer.embedding.weight
        self.idle = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self._latents = torch.empty(0)

    def quantize(self, latents: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, K, C] -> what the decoder gets [B, K, C], and losses once the quantizer takes part.

        Before ``quantizer_start`` the latents go through as they are (on the unit sphere, where codes are).
        """
        codes, ids, losses = self.quantizer(latents)
        self._latents = latents.detach()
        if step.number < self.config.quantizer_start:
            through = nn.functional.normalize(latents, dim=-1) if self.quantizer.use_l2_norm else latents
            return through, {}
        used = torch.zeros(len(self.idle), device=self.idle.device).index_fill_(0, ids.flatten(), 1.0)
        self.idle = torch.where(mean_of(used) > 0, 0, self.idle + 1)
        return codes, {"quantizer": losses.commitment + losses.codebook, "commitment": losses.commitment}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> None:
        """Seeds the codebook when the quantizer is about to take part; later revives the codes that went idle."""
        if step.number + 1 == self.config.quantizer_start:
            self._seed(torch.arange(len(self.idle), device=self.idle.device), step, optimizers)
        elif step.number >= self.config.quantizer_start and step.progress < self.config.revive_until:
            self._seed(torch.nonzero(self.idle >= self.config.dead_after).flatten(), step, optimizers)

    @torch.no_grad()
    def _seed(self, codes: Tensor, step: Step, optimizers: list[Optimizer]) -> None:
        """Moves ``codes`` onto latents of this batch, each with a little noise so that no two are the same."""
        if not len(codes):
            return
        latents = all_rows(self._latents).flatten(0, 1)
        if self.quantizer.use_l2_norm:
            latents = nn.functional.normalize(latents, dim=-1)
        chosen = torch.randperm(max(len(codes), len(latents)), generator=step.generator)[: len(codes)] % len(latents)
        noise = torch.randn(len(codes), latents.shape[1], generator=step.generator).to(latents.device)
        weight = self.quantizer.embedding.weight
        weight[codes] = latents[chosen.to(latents.device)] + 0.01 * latents.std() * noise
        self.idle[codes] = 0
        for optimizer in optimizers:
            # What was learned about the old place of a code says nothing about the new one.
            for value in optimizer.state.get(weight, {}).values():
                if value.shape == weight.shape:
                    value[codes] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """How long each code has been idle."""
        return {"idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.idle = state["idle"].to(self.idle.device)
