"""The reconstruction loss: pixels, perceptual and semantic distance, and a discriminator that is trained with it.

::

    outputs ─┬─ pixels ─────────────────────────────────> l2, l1
             ├─ Lite0 features ──┬─ distance to the original's ─> perceptual
             │                   └─ FeatureDiscriminator ─┐
             └─ PatchDiscriminator ───────────────────────┴─> adversarial (hinge), LeCam
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from models.errors import ConfigError
from models.evaluation.lite0 import CHANNELS, load_lite0, perceptual_distance
from models.training.config import TokenizerRun
from models.training.discriminators import FeatureDiscriminator, PatchDiscriminator
from models.training.distributed import Objective, accumulate_gradients, data_parallel, mean_of
from models.training.losses import LeCam, discriminator_loss, generator_loss, grid_loss, mean_logit, pixel_loss
from models.training.optimizers import learning_rate
from models.training.published_perceptual import load_published_perceptual
from models.training.task import Step, autocast

# Features are computed on a strided grid. With a fixed grid a decoder learns patterns that are invisible to it, so both
# images of a pair are shifted by the same random number of pixels, less than this.
_JITTER = 16


class ReconstructionLoss:
    """The loss of reconstructions, with the discriminator and its optimizer if ``run.losses`` has an adversarial weight.

    ``dtype`` is the number format of the perceptual network and the discriminator in training; losses are float32.
    """

    def __init__(
        self,
        run: TokenizerRun,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = losses = run.losses
        self._patch = run.network.decoder_patch_size
        self._device, self._dtype = device, dtype
        adversarial = losses.adversarial_weight > 0
        perceptual = losses.perceptual if losses.perceptual_weight > 0 else None
        on_features = adversarial and run.discriminator.kind == "features"
        if perceptual not in (None, "lite0") and run.prefix is not None and run.prefix.perceptual_exponent > 0:
            raise ConfigError("prefix.perceptual_exponent needs losses.perceptual = 'lite0'")
        needs_lite0 = perceptual == "lite0" or losses.semantic_weight > 0 or on_features
        self._lite0 = load_lite0(device) if needs_lite0 else None
        self._published = load_published_perceptual(perceptual, device) if perceptual not in (None, "lite0") else None
        self.adversary = Adversary(run, device, dtype) if adversarial else None

    def __call__(self, outputs: Tensor, images: Tensor, step: Step, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of outputs and images [B, 3, S, S] in [0, 1], float32 scalars; ``total`` is their weighted sum.

        ``weights`` [B] multiply each image's perceptual and semantic loss.
        """
        outputs = outputs.float()
        config = self.config
        parts = {"pixels": pixel_loss(outputs, images, l2_weight=config.l2_weight, l1_weight=config.l1_weight)}
        if config.grid_weight > 0:
            parts["grid"] = grid_loss(outputs, images, self._patch)
        fake: tuple[Tensor, ...] = (outputs,)
        real: tuple[Tensor, ...] = (images,)
        if self._lite0 is not None:
            shifted, target = _shift_both(outputs, images, step.generator)
            with autocast(self._device, self._dtype):
                fake = self._lite0.features(shifted)
                with torch.no_grad():
                    real = self._lite0.features(target)
        if config.perceptual_weight > 0:
            parts["perceptual"] = (
                self._published(outputs, images)
                if self._published is not None
                else _mean(perceptual_distance(fake, real), weights)
            )
        if config.semantic_weight > 0 and self._lite0 is not None:
            with autocast(self._device, self._dtype):
                pooled, target = self._lite0.pool(fake[-1]), self._lite0.pool(real[-1])
            parts["semantic"] = _mean(1.0 - F.cosine_similarity(pooled.float(), target.float(), dim=1), weights)
        if self.adversary is not None:
            if isinstance(self.adversary.discriminator, PatchDiscriminator):
                fake, real = (outputs,), (images,)
            parts |= self.adversary.losses(fake, real, step)
        factors = {
            "grid": config.grid_weight,
            "perceptual": config.perceptual_weight,
            "semantic": config.semantic_weight,
            "adversarial": config.adversarial_weight,
        }
        weighted = (weight * parts[name] for name, weight in factors.items() if name in parts)
        return {"total": sum(weighted, start=parts["pixels"]), **parts}

    def after_step(self, step: Step) -> dict[str, Tensor]:
        """Trains the discriminator on the images of the last call; returns its losses and mean logits."""
        return {} if self.adversary is None else self.adversary.train(step)

    @torch.no_grad()
    def distance(self, outputs: Tensor, images: Tensor) -> Tensor | None:
        """Perceptual distances [B] by Lite0, or None if it is not loaded."""
        if self._lite0 is None:
            return None
        return perceptual_distance(self._lite0.features(outputs), self._lite0.features(images))


class Adversary:
    """A discriminator with its optimizer: the adversarial loss and the discriminator's own training."""

    def __init__(self, run: TokenizerRun, device: torch.device, dtype: torch.dtype) -> None:
        self._run, self.config = run, run.losses
        config = run.discriminator
        self.discriminator = (
            PatchDiscriminator(config.channels)
            if config.kind == "patch"
            else FeatureDiscriminator(CHANNELS, config.channels)
        ).to(device)
        parameters = self.discriminator.parameters()
        self.optimizer = AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        self.lecam = LeCam()
        self._device, self._dtype = device, dtype
        self._objective = data_parallel(Objective(self.discriminator, self._own_losses))
        self._seen: list[tuple[list[Tensor], list[Tensor]]] = []  # real and fake inputs of the parts of this step

    def losses(self, fake: tuple[Tensor, ...], real: tuple[Tensor, ...], step: Step) -> dict[str, Tensor]:
        """``adversarial``, once ``adversarial_start`` is reached. Inputs: images, or feature maps [B, C, H, W] each."""
        if step.part == 0:
            self._seen.clear()
        if step.number < self.config.adversarial_start:
            return {}
        self._seen.append(([maps.detach() for maps in real], [maps.detach() for maps in fake]))
        self.discriminator.eval().requires_grad_(False)
        return {"adversarial": generator_loss(self._logits(fake))}

    def train(self, step: Step) -> dict[str, Tensor]:
        """Updates the discriminator with the inputs of the :meth:`losses` of this step."""
        if not self._seen:
            return {}
        self.discriminator.train().requires_grad_(True)
        factor = learning_rate(self._run.schedule, step.number, step.progress, start=self.config.adversarial_start)
        for group in self.optimizer.param_groups:
            group["lr"] = self._run.discriminator.lr * factor
        found = accumulate_gradients(self._objective, self._seen)
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self._run.optimizer.gradient_clip)
        self._seen.clear()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lecam.update(*mean_of(torch.stack([found["logit_real"], found["logit_fake"]])))
        return {name: value for name, value in found.items() if name != "loss"}

    def _own_losses(self, real: list[Tensor], fake: list[Tensor]) -> dict[str, Tensor]:
        """The discriminator's losses and mean logits; ``loss`` is minimised."""
        real_logits, fake_logits = self._logits(real), self._logits(fake)
        hinge = discriminator_loss(real_logits, fake_logits)
        means = mean_logit(real_logits), mean_logit(fake_logits)
        lecam = self.lecam.penalty(*means)
        loss = hinge + self.config.lecam_weight * lecam
        return {"loss": loss, "discriminator": hinge, "lecam": lecam, "logit_real": means[0], "logit_fake": means[1]}

    def _logits(self, inputs: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
        with autocast(self._device, self._dtype):
            return [logits.float() for logits in self.discriminator(inputs)]

    def state_dict(self) -> dict[str, Any]:
        """The discriminator, its optimizer and LeCam's means."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lecam": [float(self.lecam.real), float(self.lecam.fake)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lecam.real, self.lecam.fake = map(torch.tensor, state["lecam"])


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (weights * values).mean()


def _shift_both(outputs: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shifts both right and down by the same random number of pixels, repeating the border and keeping the size."""
    down, right = torch.randint(_JITTER, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return tuple(  # type: ignore[return-value]
        F.pad(x, (right, 0, down, 0), mode="replicate")[..., :height, :width] for x in (outputs, images)
    )
