"""What a reconstruction is judged by, beyond its pixels: a perceptual distance, and a discriminator that learns.

::

    outputs ─┬─ pixels ─────────────────────────────────> l2, l1
             ├─ Lite0 features ──┬─ distance to the photograph's ─> perceptual
             │                   └─ FeatureDiscriminator ─┐
             └─ PatchDiscriminator ───────────────────────┴─> adversarial (hinge), LeCam
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from models.evaluation.lite0 import CHANNELS, load_lite0
from models.evaluation.perceptual import perceptual_distance
from models.training.config import DiscriminatorConfig, LossConfig
from models.training.discriminators import FeatureDiscriminator, PatchDiscriminator
from models.training.distributed import average_gradients, mean_of
from models.training.loop import Step, autocast
from models.training.losses import LeCam, discriminator_loss, generator_loss, grid_loss, mean_logit, pixel_loss
from models.training.published_perceptual import load_published_perceptual

__all__ = ["ReconstructionLoss"]

# Features are computed on a strided grid. Were it always in the same place, a decoder would learn patterns that are
# invisible to it; so pictures are moved by less than this many pixels, both of a pair alike.
_JITTER = 16


class ReconstructionLoss:
    """The loss of reconstructions, with the discriminator and its optimizer where there is one.

    ``dtype`` is the number format of the convolutions that judge in training; what they find is compared in float32.
    """

    def __init__(
        self,
        losses: LossConfig,
        discriminator: DiscriminatorConfig,
        device: torch.device,
        *,
        patch: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = losses
        self._patch = patch
        self._device = device
        self._dtype = dtype
        adversarial = losses.adversarial_weight > 0
        by_features = adversarial and discriminator.kind == "features"
        by_lite0 = losses.semantic_weight > 0 or (losses.perceptual_weight > 0 and losses.perceptual == "lite0")
        self._lite0 = load_lite0(device) if by_lite0 or by_features else None
        self._published = (
            load_published_perceptual(losses.perceptual, device)
            if losses.perceptual_weight > 0 and losses.perceptual != "lite0"
            else None
        )
        self.discriminator: FeatureDiscriminator | PatchDiscriminator | None = None
        if adversarial:
            self.discriminator = (
                FeatureDiscriminator(CHANNELS, discriminator.channels)
                if by_features
                else PatchDiscriminator(discriminator.channels)
            ).to(device)
            self._optimizer = AdamW(
                self.discriminator.parameters(),
                lr=discriminator.lr,
                betas=discriminator.betas,
                weight_decay=discriminator.weight_decay,
            )
            self._lr = discriminator.lr
        self.lecam = LeCam()
        self._seen: tuple[Any, Any] | None = None

    def __call__(self, outputs: Tensor, images: Tensor, step: Step) -> dict[str, Tensor]:
        """Scalars of outputs and photographs [B, 3, S, S] in [0, 1]; ``picture`` is their weighted sum. In float32."""
        outputs = outputs.float()
        config = self.config
        parts = {"pixels": pixel_loss(outputs, images, l2_weight=config.l2_weight, l1_weight=config.l1_weight)}
        total = parts["pixels"]
        if config.grid_weight > 0:
            parts["grid"] = grid_loss(outputs, images, self._patch)
            total = total + config.grid_weight * parts["grid"]
        fake: Any = outputs
        real: Any = images
        if self._lite0 is not None:
            moved, target = _moved_alike(outputs, images, step.generator)
            with self._autocast():
                features = self._lite0.features(moved)
                with torch.no_grad():
                    targets = self._lite0.features(target)
            if isinstance(self.discriminator, FeatureDiscriminator):
                fake, real = features, targets
        if config.perceptual_weight > 0:
            if self._published is not None:
                parts["perceptual"] = self._published(outputs, images)
            else:
                parts["perceptual"] = perceptual_distance(features, targets).mean()
            total = total + config.perceptual_weight * parts["perceptual"]
        if config.semantic_weight > 0 and self._lite0 is not None:
            with self._autocast():
                pooled, target_pooled = self._lite0.pool(features[-1]), self._lite0.pool(targets[-1])
            near = F.cosine_similarity(pooled.float(), target_pooled.float(), dim=1)
            parts["semantic"] = 1.0 - near.mean()
            total = total + config.semantic_weight * parts["semantic"]
        self._seen = None
        if self.discriminator is not None and step.number >= config.adversarial_start:
            self.discriminator.eval().requires_grad_(False)
            parts["adversarial"] = generator_loss(self._logits(self.discriminator, fake))
            total = total + config.adversarial_weight * parts["adversarial"]
            self._seen = _detached(real), _detached(fake)
        return {"picture": total, **parts}

    def after_step(self, step: Step) -> dict[str, Tensor]:
        """Trains the discriminator on what the last call saw."""
        if self._seen is None or self.discriminator is None:
            return {}
        real, fake = self._seen
        self._seen = None
        self.discriminator.train().requires_grad_(True)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * step.lr_factor
        real_logits, fake_logits = self._logits(self.discriminator, real), self._logits(self.discriminator, fake)
        hinge = discriminator_loss(real_logits, fake_logits)
        means = mean_logit(real_logits), mean_logit(fake_logits)
        lecam = self.lecam.penalty(*means)
        (hinge + self.config.lecam_weight * lecam).backward()  # type: ignore[no-untyped-call]
        average_gradients(self.discriminator.parameters())
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.lecam.follow(mean_of(means[0]), mean_of(means[1]))
        return {"discriminator": hinge, "lecam": lecam, "logit_real": means[0], "logit_fake": means[1]}

    def _logits(self, discriminator: FeatureDiscriminator | PatchDiscriminator, seen: Any) -> list[Tensor]:
        with self._autocast():
            return [logits.float() for logits in discriminator(seen)]

    def _autocast(self) -> torch.autocast:
        return autocast(self._device, self._dtype)

    @torch.no_grad()
    def distance(self, outputs: Tensor, images: Tensor) -> Tensor | None:
        """Perceptual distances [B] by Lite0, where it is at hand."""
        if self._lite0 is None:
            return None
        return perceptual_distance(self._lite0.features(outputs), self._lite0.features(images))

    def state_dict(self) -> dict[str, Any]:
        """The discriminator, its optimizer and LeCam's means."""
        if self.discriminator is None:
            return {}
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "lecam": [float(self.lecam.real), float(self.lecam.fake)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        if self.discriminator is None:
            return
        self.discriminator.load_state_dict(state["discriminator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.lecam.real, self.lecam.fake = map(torch.tensor, state["lecam"])


def _moved_alike(outputs: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both moved right and down by the same random number of pixels, borders repeated, cut to their size again."""
    down, right = torch.randint(_JITTER, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return tuple(  # type: ignore[return-value]
        F.pad(x, (right, 0, down, 0), mode="replicate")[..., :height, :width] for x in (outputs, images)
    )


def _detached(seen: Any) -> Any:
    return tuple(maps.detach() for maps in seen) if isinstance(seen, tuple) else seen.detach()
