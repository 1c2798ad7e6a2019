"""Training a tokenizer on pixels: all of it (``one-stage``), or the decoder of a trained one (``stage-2``)."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.data.datasets import ImageDataset
from models.errors import ConfigError
from models.evaluation.similarity import psnr
from models.networks.titok import TiTok
from models.training.config import TokenizerRun
from models.training.pretrained import build_tokenizer, load_vqgan
from models.training.reconstruction_loss import ReconstructionLoss
from models.training.task import Step
from models.training.tokenizer import Reconstructed, TokenizerTask


class PixelTask(TokenizerTask):
    """The recipes that minimise a reconstruction loss.

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
        self.encoder_frozen = run.recipe == "stage-2"
        if self.encoder_frozen:
            freeze_encoder(network)
        super().__init__(run, network, train, validation, device)
        self.reconstruction_loss = ReconstructionLoss(run, self.device, dtype=self.dtype)
        if self.reconstruction_loss.adversary is not None:
            self.parts["picture_loss"] = self.reconstruction_loss.adversary

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The reconstruction loss and, if the encoder is trained, the quantizer's (or a VAE's divergence)."""
        images = self.batch(step)
        parts: dict[str, Tensor] = {}
        self.network.train()
        if self.encoder_frozen:
            self.network.encoder.eval()
            with torch.no_grad():
                codes = self.network.quantize.lookup(self.network.encode(images).ids)
        else:
            codes, parts = self.quantize(images, step)
        codes, present = self.drop_tail(codes, step)
        weights = None if self.tail_drop is None else self.tail_drop.perceptual_weights(codes, present)
        with self.autocast():
            outputs = self.network.decode_codes(codes, present)
        reconstruction = self.reconstruction_loss(outputs, images, step, weights)
        return {"loss": reconstruction.pop("total") + self.bottleneck_loss(parts), **reconstruction, **parts}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Trains the discriminator and re-initialises idle codes."""
        if not self.encoder_frozen:
            super().after_step(step, optimizers)
        return self.reconstruction_loss.after_step(step)

    def reconstruct(self, network: TiTok, images: Tensor) -> Reconstructed:
        """Encodes and decodes as the service does, clamped to [0, 1]."""
        if network.config.quantize_mode == "vae":
            return Reconstructed(network.decode_codes(network.latents(images)).clamp(0.0, 1.0), None)
        ids = network.encode(images).ids
        return Reconstructed(network.decode(ids).clamp(0.0, 1.0), ids)

    def more_metrics(self, network: TiTok, images: Tensor, outputs: Reconstructed) -> dict[str, Tensor]:
        """The perceptual distance, if Lite0 is loaded; PSNR of a half and a quarter of the tokens, if tails are dropped."""
        distance = self.reconstruction_loss.distance(outputs.images, images)
        metrics = {} if distance is None else {"perceptual": distance}
        if self.tail_drop is not None and outputs.ids is not None:
            for length in (network.config.num_latent_tokens // 2, network.config.num_latent_tokens // 4):
                shorter = network.decode(outputs.ids[:, :length]).clamp(0.0, 1.0)
                metrics[f"psnr_{length}"] = psnr(shorter, images)
        return metrics


def freeze_encoder(network: TiTok) -> None:
    """Freezes all but the decoder and, in a two-stage network, the pixel decoder."""
    network.requires_grad_(False)
    network.decoder.requires_grad_(True)
    if network.config.finetune_decoder:
        network.pixel_quantize.requires_grad_(True)
        network.pixel_decoder.requires_grad_(True)


def _check(run: TokenizerRun) -> None:
    legacy = run.network.is_legacy
    if run.recipe == "one-stage":
        if legacy:
            raise ConfigError("recipe one-stage needs network.is_legacy = false")
        return
    if legacy and not run.network.finetune_decoder:
        raise ConfigError("recipe stage-2 needs network.finetune_decoder = true for a two-stage network")
    if run.network.quantize_mode != "vq":
        raise ConfigError("recipe stage-2 needs network.quantize_mode = 'vq'")
    if run.initial.checkpoint is None:
        raise ConfigError("recipe stage-2 needs initial.checkpoint: a tokenizer whose encoder and codes are trained")
