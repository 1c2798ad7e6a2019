"""Trains a one-stage tokenizer: pixels in, pixels out, through a codebook that is kept alive."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.data.photographs import Photographs
from models.titok import TiTok, TiTokConfig
from models.training.augmentation import random_views
from models.training.config import TokenizerRun
from models.training.initialisation import initialise, plane_waves
from models.training.loop import Step
from models.training.losses import pixel_loss
from models.training.measures import entropy_bits, psnr, seam_ratio
from models.training.order import rows_of_step
from models.training.state import save_checkpoint

__all__ = ["TokenizerTask", "checkpoint_config"]

MIDDLE_GREY = 0.45


class TokenizerTask:
    """A TiTok network, its photographs, and how long each code has been out of use."""

    def __init__(self, run: TokenizerRun, train: Photographs, validation: Photographs) -> None:
        if run.network.is_legacy or run.network.quantize_mode != "vq":
            raise ValueError("the one-stage recipe needs is_legacy = false and quantize_mode = 'vq'")
        self.run = run
        self.train = train
        self.validation = validation
        torch.manual_seed(run.schedule.seed)
        self.network = TiTok(run.network)
        self._initialise()
        self.idle = torch.zeros(run.network.codebook_size, dtype=torch.int64)
        self._latents = torch.empty(0)

    @torch.no_grad()
    def _initialise(self) -> None:
        encoder, decoder = self.network.encoder, self.network.decoder
        last = cast(nn.Conv2d, decoder.ffn[0] if self.run.network.pixel_head == "linear" else decoder.head.out)
        initialise(self.network, last=last, last_std=0.01)
        # Begins at middle grey, in and out. Were the input not centred, a patch's embedding would be brightness times
        # one direction, and the norm that follows takes brightness away: such a network stays at the mean image.
        cast(Tensor, encoder.patch_embed.bias).copy_(-MIDDLE_GREY * encoder.patch_embed.weight.flatten(1).sum(1))
        cast(Tensor, last.bias).fill_(MIDDLE_GREY)
        # Where a token is must be as plain as what it holds (patches about 0.25, codes about 0.3).
        for part in (encoder, decoder):
            grid = math.isqrt(len(part.positional_embedding) - 1)
            part.positional_embedding[1:] = 0.3 * plane_waves(grid, part.positional_embedding.shape[1])
            part.latent_token_positional_embedding.normal_(0.0, 0.3)
        if self.run.network.pixel_head == "conv":
            # Convolutions are several times faster with channels last in memory.
            decoder.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The pixel loss and, once the quantizer takes part, its own."""
        self.network.train()
        rows = rows_of_step(len(self.train), self.run.schedule.batch_size, step.number, self.run.schedule.seed)
        images = random_views(self.train.batch(rows), step.generator, max_shift=self.run.training.max_shift)
        with self._autocast():
            latents = self.network.latents(images)
        codes, ids, quantizer = self.network.quantize(latents)
        self._latents = latents.detach()
        quantizing = step.number >= self.run.training.quantizer_start
        if quantizing:
            self.idle += 1
            self.idle[ids.flatten()] = 0
        else:
            codes = nn.functional.normalize(latents, dim=-1) if self.run.network.use_l2_norm else latents
        with self._autocast():
            outputs = self.network.decode_codes(codes)
        pixels = pixel_loss(outputs, images, l1_weight=self.run.training.l1_weight)
        total = pixels + quantizer.commitment + quantizer.codebook if quantizing else pixels
        return {"loss": total, "pixels": pixels, "commitment": quantizer.commitment, "codebook": quantizer.codebook}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> None:
        """Seeds the codebook when the quantizer is about to take part; later revives the codes that went idle."""
        settings = self.run.training
        if step.number + 1 == settings.quantizer_start:
            self._seed(torch.arange(len(self.idle)), step, optimizers)
        elif step.number >= settings.quantizer_start and step.progress < settings.revive_until:
            self._seed(torch.nonzero(self.idle >= settings.dead_after).flatten(), step, optimizers)

    @torch.no_grad()
    def _seed(self, codes: Tensor, step: Step, optimizers: list[Optimizer]) -> None:
        """Moves ``codes`` onto latents of this batch, each with a little noise so that no two are the same."""
        if not len(codes):
            return
        latents = self._latents.flatten(0, 1)
        if self.run.network.use_l2_norm:
            latents = nn.functional.normalize(latents, dim=-1)
        chosen = torch.randperm(max(len(codes), len(latents)), generator=step.generator)[: len(codes)] % len(latents)
        noise = torch.randn(len(codes), latents.shape[1], generator=step.generator)
        weight = self.network.quantize.embedding.weight
        weight[codes] = latents[chosen] + 0.01 * latents.std() * noise
        self.idle[codes] = 0
        for optimizer in optimizers:
            # What was learned about the old place of a code says nothing about the new one.
            for value in optimizer.state.get(weight, {}).values():
                if value.shape == weight.shape:
                    value[codes] = 0.0

    @torch.no_grad()
    def evaluate(self, network: TiTok) -> dict[str, float]:
        """PSNR (dB, mean over images), codes used and their entropy, seams, on the first validation photographs."""
        count = min(self.run.training.validation_images, len(self.validation))
        counts = torch.zeros(self.run.network.codebook_size, dtype=torch.int64)
        decibels, outputs = [], []
        for rows in np.array_split(np.arange(count), -(-count // 64)):
            images = self.validation.batch(rows)
            ids = network.encode(images).ids
            outputs.append(network.decode(ids).clamp(0, 1))
            decibels.append(psnr(outputs[-1], images))
            counts += torch.bincount(ids.flatten(), minlength=len(counts))
        return {
            "validation_psnr": float(torch.cat(decibels).mean()),
            "codes_used": int((counts > 0).sum()),
            "entropy_bits": entropy_bits(counts),
            "seam_ratio": seam_ratio(torch.cat(outputs), self.run.network.decoder_patch_size),
            "codes_alive": int((self.idle < 10 * self.run.training.dead_after).sum()),
        }

    def export(self, network: TiTok, folder: Path) -> None:
        """Writes the checkpoint that the service loads."""
        save_checkpoint(folder, checkpoint_config(self.run.network), network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """How long each code has been idle."""
        return {"idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.idle = state["idle"]

    def _autocast(self) -> torch.autocast:
        low = self.run.optimizer.precision == "bfloat16"
        return torch.autocast("cpu", torch.bfloat16, enabled=low)


def checkpoint_config(network: TiTokConfig) -> dict[str, Any]:
    """The ``config.json`` of a tokenizer, in the shape of the published ones."""
    sizes = {
        f"vit_{part}_model_size": {"width": size.width, "layers": size.layers, "heads": size.heads}
        for part, size in (("enc", network.encoder), ("dec", network.decoder))
    }
    vq_model = {
        "codebook_size": network.codebook_size,
        "token_size": network.token_size,
        "use_l2_norm": network.use_l2_norm,
        "num_latent_tokens": network.num_latent_tokens,
        "quantize_mode": network.quantize_mode,
        "is_legacy": network.is_legacy,
        "finetune_decoder": network.finetune_decoder,
        **sizes,
        "vit_enc_patch_size": network.encoder_patch_size,
        "vit_dec_patch_size": network.decoder_patch_size,
        "pixel_head": network.pixel_head,
        "pixel_head_channels": network.pixel_head_channels,
        "pixel_head_blocks": network.pixel_head_blocks,
    }
    return {"model": {"vq_model": vq_model}, "dataset": {"preprocessing": {"crop_size": network.image_size}}}
