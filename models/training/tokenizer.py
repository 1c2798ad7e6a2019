"""What the recipes for tokenizers share: photographs, a codebook that is kept alive, figures and pictures."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from models.data.datasets import ImageDataset
from models.evaluation.measures import entropy_bits, seam_ratio
from models.evaluation.similarity import psnr
from models.networks.titok import TiTok
from models.training.augmentation import augment
from models.training.checkpoints import checkpoint_config, save_checkpoint
from models.training.codebook import Codebook
from models.training.config import TokenizerRun
from models.training.distributed import own_rows
from models.training.loop import Step, autocast, compute_dtype
from models.training.seeding import batch_rows, seeded_generator

__all__ = ["Reconstructed", "TokenizerTask"]

log = logging.getLogger(__name__)

PICTURED = 16
# A share of the codes that a sound run is above soon after its start.
COLLAPSED = 0.05
MEASURED_AT_ONCE = 64


class Reconstructed(NamedTuple):
    """Images [B, 3, S, S] in [0, 1] after a pass through a tokenizer, and their ids [B, K] where it has any."""

    images: Tensor
    ids: Tensor | None


class TokenizerTask(ABC):
    """A TiTok network and its photographs."""

    def __init__(
        self, run: TokenizerRun, network: TiTok, train: ImageDataset, validation: ImageDataset, device: torch.device
    ) -> None:
        self.run = run
        self.network = network.to(device)
        self.train = train
        self.validation = validation
        self.device = device
        self.codebook = Codebook(network, run.codebook) if run.network.quantize_mode == "vq" else None
        self._dtype = compute_dtype(run.optimizer.precision, device)

    @abstractmethod
    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalars of one batch; ``loss`` is the one to minimise."""

    @abstractmethod
    def restore(self, network: TiTok, images: Tensor) -> Reconstructed:
        """Images [B, 3, S, S] in [0, 1] as the tokenizer brings them back."""

    def measure(self, network: TiTok, images: Tensor, restored: Reconstructed) -> dict[str, Tensor]:  # noqa: ARG002
        """More figures of validation images, each [B], whose means go into the log."""
        return {}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Keeps the codebook alive."""
        if self.codebook is not None:
            self.codebook.after_step(step, optimizers)
        return {}

    def batch(self, step: Step) -> Tensor:
        """This process's photographs of the step, in views of their own, [B, 3, S, S] on the device."""
        size, seed = self.run.schedule.batch_size, self.run.schedule.seed
        rows = own_rows(size)
        images = self.train.batch(batch_rows(len(self.train), size, step.number, seed)[rows], step.generator)
        following = batch_rows(len(self.train), size, step.number + 1, seed)[rows]
        self.train.prefetch(following, seeded_generator(seed, step.number + 1))
        images = images.to(self.device, non_blocking=True)
        return augment(images, step.generator, max_shift=self.run.data.max_shift, batch_size=size, rows=rows)

    def codes(self, images: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """What the decoder gets for images, [B, K, C] with gradients to the encoder, and the losses of the bottleneck."""
        with self.autocast():
            if self.codebook is None:
                posterior = self.network.posterior(images)
                noise = torch.randn(posterior.mean.shape, generator=step.generator).to(self.device)
                # Summed over everything and divided by the batch, as published.
                return posterior.mean + posterior.std * noise, {"divergence": posterior.kl().sum() / len(images)}
            latents = self.network.latents(images)
        return self.codebook.quantize(latents, step)

    def bottleneck(self, parts: dict[str, Tensor]) -> Tensor | float:
        """The weighted losses of the bottleneck."""
        weights = {"quantizer": self.run.losses.quantizer_weight, "divergence": self.run.losses.kl_weight}
        return sum(weight * parts[name] for name, weight in weights.items() if name in parts)

    @torch.no_grad()
    def evaluate(self, network: TiTok) -> dict[str, float]:
        """PSNR (dB, mean over images), seams, codes used and their entropy, on the first validation photographs."""
        count = min(self.run.data.validation_images, len(self.validation))
        counts = torch.zeros(self.run.network.codebook_size, dtype=torch.int64)
        figures: dict[str, list[Tensor]] = {}
        outputs = []
        for rows in np.array_split(np.arange(count), -(-count // MEASURED_AT_ONCE)):
            images = self.validation.batch(rows).to(self.device)
            restored = self.restore(network, images)
            found = {"psnr": psnr(restored.images, images), **self.measure(network, images, restored)}
            for name, values in found.items():
                figures.setdefault(name, []).append(values.cpu())
            outputs.append(restored.images.cpu())
            if restored.ids is not None:
                counts += torch.bincount(restored.ids.flatten().cpu(), minlength=len(counts))
        means = {f"validation_{name}": float(torch.cat(values).mean()) for name, values in figures.items()}
        means["seam_ratio"] = seam_ratio(torch.cat(outputs), self.run.network.decoder_patch_size)
        if self.codebook is not None:
            used = int((counts > 0).sum())
            means |= {"codes_used": used, "entropy_bits": entropy_bits(counts)}
            if used < COLLAPSED * min(len(counts), int(counts.sum())):
                log.warning("%d of %d codes are in use: the codebook is collapsing", used, len(counts))
        return means

    @torch.no_grad()
    def pictures(self, network: TiTok) -> Tensor:
        """Validation photographs above, their reconstructions below: uint8 [2S, 16S, 3]."""
        images = self.validation.batch(np.arange(min(PICTURED, len(self.validation)))).to(self.device)
        rows = torch.stack([images, self.restore(network, images).images])  # [2, B, 3, S, S]
        return (rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2) * 255.0).round().to(torch.uint8)

    def export(self, network: TiTok, folder: Path) -> None:
        """Writes the checkpoint that the service loads."""
        save_checkpoint(folder, checkpoint_config(self.run.network), network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The codebook's memory."""
        return {} if self.codebook is None else {"codebook": self.codebook.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        if self.codebook is not None:
            self.codebook.load_state_dict(state["codebook"])

    def autocast(self) -> torch.autocast:
        """The number format of matrix products."""
        return autocast(self.device, self._dtype)
