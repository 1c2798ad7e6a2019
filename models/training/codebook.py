"""Codebook initialisation from latents, and re-initialisation of unused codes."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.networks.titok import TiTok
from models.runtime.transfers import to_device
from models.training.config import CodebookConfig
from models.training.distributed import all_rows, mean_of
from models.training.task import Step


class Codebook:
    """The quantizer of a network in training; ``idle`` int64 [V] counts the steps since each code was used."""

    def __init__(self, network: TiTok, config: CodebookConfig) -> None:
        self.quantizer = network.quantize
        self.config = config
        weight = self.quantizer.embedding.weight
        self.idle = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self._used = torch.zeros(len(weight), device=weight.device)  # in the parts of this step
        self._latents = torch.empty(0)

    def quantize(self, latents: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, K, C] -> the decoder's input [B, K, C], and the quantizer's losses.

        Before ``quantizer_start`` latents are not quantized, but normalised if the codes are, and there are no losses.
        """
        codes, ids, losses = self.quantizer(latents)
        self._latents = latents.detach()
        if step.number < self.config.quantizer_start:
            return self.quantizer.normalised(latents), {}
        self._used.index_fill_(0, ids.flatten(), 1.0)
        return codes, {"quantizer": losses.commitment + losses.codebook, "commitment": losses.commitment}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> None:
        """Initialises all codes at ``quantizer_start``; afterwards re-initialises idle ones."""
        if step.number >= self.config.quantizer_start:
            self.idle = torch.where(mean_of(self._used) > 0, 0, self.idle + 1)
            self._used.zero_()
        if step.number + 1 == self.config.quantizer_start:
            self._initialise(torch.ones_like(self.idle, dtype=torch.bool), step, optimizers)
        elif step.number >= self.config.quantizer_start and step.progress < self.config.revive_until:
            self._initialise(self.idle >= self.config.dead_after, step, optimizers)

    @torch.no_grad()
    def _initialise(self, codes: Tensor, step: Step, optimizers: list[Optimizer]) -> None:
        """Sets the codes bool [V] to latents of this batch, with noise so that no two codes are equal.

        A GPU computes new values of all codes, since to count those that change it would have to be waited for.
        """
        if codes.device.type == "cpu" and not codes.any():
            return
        latents = self.quantizer.normalised(all_rows(self._latents).flatten(0, 1))
        chosen = torch.randperm(max(len(codes), len(latents)), generator=step.generator)[: len(codes)] % len(latents)
        noise = to_device(torch.randn(len(codes), latents.shape[1], generator=step.generator), latents.device)
        weight = self.quantizer.embedding.weight
        fresh = latents[to_device(chosen, latents.device)] + 0.01 * latents.std() * noise
        weight.copy_(torch.where(codes[:, None], fresh, weight))
        self.idle.masked_fill_(codes, 0)
        for optimizer in optimizers:
            # The optimizer's moments belong to the old values of the codes.
            for value in optimizer.state.get(weight, {}).values():
                if value.shape == weight.shape:
                    value.masked_fill_(codes[:, None], 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The idle counters."""
        return {"idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.idle = state["idle"].to(self.idle.device)
