"""Trains a tokenizer on pixels: all of it (``one-stage``), or the decoder of a trained one (``stage-2``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.data.datasets import ImageDataset
from models.networks.titok import TiTok
from models.training.config import ConfigError, TokenizerRun
from models.training.loop import Step
from models.training.pretrained import build_tokenizer, load_vqgan
from models.training.reconstruction_loss import ReconstructionLoss
from models.training.tokenizer import Reconstructed, TokenizerTask

__all__ = ["PixelTask", "freeze_encoder"]


class PixelTask(TokenizerTask):
    """The recipes whose loss is of pictures.

    Source of the second stage: arXiv 2406.07550, section 3.3; of the single stage: TA-TiTok's recipe (1d-tokenizer,
    commit 942a96f), from which the one-stage checkpoints come.
    """

    def __init__(
        self, run: TokenizerRun, train: ImageDataset, validation: ImageDataset, device: torch.device | str = "cpu"
    ) -> None:
        _check(run)
        network = build_tokenizer(run)
        if run.initial.vqgan is not None and run.network.finetune_decoder:
            vqgan = load_vqgan(run.initial.vqgan)
            network.pixel_decoder.load_state_dict(vqgan.decoder.state_dict())
            network.pixel_quantize.load_state_dict(vqgan.quantize.state_dict())
        self.frozen = run.recipe == "stage-2"
        if self.frozen:
            freeze_encoder(network)
        super().__init__(run, network, train, validation, torch.device(device))
        self.picture_loss = ReconstructionLoss(
            run.losses, run.discriminator, self.device, patch=run.network.decoder_patch_size, dtype=self._dtype
        )

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The picture loss and, where the encoder is trained, the quantizer's (or a VAE's divergence)."""
        images = self.batch(step)
        parts: dict[str, Tensor] = {}
        self.network.train()
        if self.frozen:
            self.network.encoder.eval()
            with torch.no_grad():
                codes = self.network.quantize.lookup(self.network.encode(images).ids)
        else:
            codes, parts = self.codes(images, step)
        with self.autocast():
            outputs = self.network.decode_codes(codes)
        picture = self.picture_loss(outputs, images, step)
        return {"loss": picture.pop("picture") + self.bottleneck(parts), **picture, **parts}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Lets the discriminator learn, and keeps the codebook alive."""
        if not self.frozen:
            super().after_step(step, optimizers)
        return self.picture_loss.after_step(step)

    def restore(self, network: TiTok, images: Tensor) -> Reconstructed:
        """As the service would give them back, clamped to [0, 1]."""
        if network.config.quantize_mode == "vae":
            return Reconstructed(network.decode_codes(network.latents(images)).clamp(0.0, 1.0), None)
        ids = network.encode(images).ids
        return Reconstructed(network.decode(ids).clamp(0.0, 1.0), ids)

    def measure(self, network: TiTok, images: Tensor, restored: Reconstructed) -> dict[str, Tensor]:  # noqa: ARG002
        """The perceptual distance, where its network is at hand."""
        distance = self.picture_loss.distance(restored.images, images)
        return {} if distance is None else {"perceptual": distance}

    def state_dict(self) -> dict[str, Any]:
        """The codebook's memory, and the discriminator."""
        return super().state_dict() | {"picture_loss": self.picture_loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.picture_loss.load_state_dict(state["picture_loss"])


def freeze_encoder(network: TiTok) -> None:
    """Leaves only what follows the codes to be trained: the decoder and, in a two-stage network, the pixel decoder."""
    network.requires_grad_(False)
    network.decoder.requires_grad_(True)
    if network.config.finetune_decoder:
        network.pixel_quantize.requires_grad_(True)
        network.pixel_decoder.requires_grad_(True)


def _check(run: TokenizerRun) -> None:
    legacy = run.network.is_legacy
    if run.recipe == "one-stage" and legacy:
        raise ConfigError("recipe one-stage needs network.is_legacy = false")
    if run.recipe == "one-stage":
        return
    if legacy and not run.network.finetune_decoder:
        raise ConfigError("recipe stage-2 needs network.finetune_decoder = true for a two-stage network")
    if run.network.quantize_mode != "vq":
        raise ConfigError("recipe stage-2 needs network.quantize_mode = 'vq'")
    if run.initial.checkpoint is None:
        raise ConfigError("recipe stage-2 needs initial.checkpoint: a tokenizer whose encoder and codes are trained")
