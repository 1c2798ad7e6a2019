"""What is minimised. All of it runs in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LeCam",
    "discriminator_loss",
    "generator_loss",
    "grid_loss",
    "masked_token_loss",
    "mean_logit",
    "pixel_loss",
    "proxy_code_loss",
    "random_masks",
]


def pixel_loss(outputs: Tensor, images: Tensor, *, l2_weight: float = 1.0, l1_weight: float = 0.0) -> Tensor:
    """Weighted sum of the mean squared and the mean absolute error; images [B, 3, S, S] in [0, 1]."""
    difference = outputs.float() - images
    return l2_weight * difference.square().mean() + l1_weight * difference.abs().mean()


def grid_loss(outputs: Tensor, images: Tensor, patch: int) -> Tensor:
    """How much the positions within a patch differ from one another in outputs, where they do not in photographs.

    Photographs [B, 3, S, S] know nothing of patches: their mean, and the mean size of the step to the next pixel, are
    the same at every position modulo ``patch``. A decoder that draws patch by patch leaves a pattern in either. The
    squared differences of both are added up, the means' in units of the photographs' mean step, the steps' in units of
    their own mean, so that blur itself costs nothing.
    """
    difference = F.pixel_unshuffle(outputs.float() - images, patch).mean(dim=(0, 2, 3)).view(3, -1)
    pattern = (difference - difference.mean(dim=1, keepdim=True)).square().mean()
    loss = pattern / torch.stack([images.diff(dim=axis).abs().mean() for axis in (2, 3)]).mean().square()
    for axis in (2, 3):
        loss = loss + (_steps(outputs.float(), patch, axis) - _steps(images, patch, axis)).square().mean()
    return loss


def _steps(images: Tensor, patch: int, axis: int) -> Tensor:
    """Mean absolute step from each row or column to the next by its position modulo ``patch``, relative to all: [P]."""
    steps = F.pad(images.diff(dim=axis).abs().mean(dim=(0, 1, 5 - axis)), (0, 1))  # [S], the last one is no step
    counts = torch.full((patch,), float(len(steps) // patch), device=steps.device)
    counts[-1] -= 1.0
    means = steps.view(-1, patch).sum(dim=0) / counts
    return means / means.mean()


def proxy_code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy of proxy-code logits [B, N, V] and the frozen 2-D tokenizer's codes int64 [B, N].

    Source: TiTok, first training stage (arXiv 2406.07550, section 3.3).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def masked_token_loss(
    logits: Tensor, tokens: Tensor, masked: Tensor, *, label_smoothing: float, visible_weight: float
) -> Tensor:
    """Cross-entropy of logits [B, K, V] and tokens int64 [B, K]; where not ``masked`` it counts ``visible_weight``."""
    each = F.cross_entropy(logits.mT.float(), tokens, reduction="none", label_smoothing=label_smoothing)
    weights = torch.where(masked, 1.0, visible_weight)
    return (each * weights).sum() / weights.sum()


def random_masks(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Which tokens the generator must guess, bool [B, K]: the arccos schedule at a random moment, at least one."""
    moment = torch.rand(batch, generator=generator)
    count = (length * torch.acos(moment) / (math.pi / 2)).round().clamp(min=1)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < count[:, None]


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of a discriminator, half of each side, the mean over its heads.

    ``real`` and ``fake`` are its logits, a tensor [B, 1, H, W] a head. Source: TiTok's second stage (1d-tokenizer,
    commit 942a96f), after "Geometric GAN" (arXiv 1705.02894).
    """
    each = [0.5 * (F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(each).mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """What makes the discriminator's logits for reconstructions rise, the mean over its heads."""
    return -mean_logit(fake)


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """The mean logit of a discriminator, every head counting the same."""
    return torch.stack([each.mean() for each in logits]).mean()


class LeCam:
    """Keeps a discriminator's logits for either side close to the running mean of the other's.

    Source: "Regularizing Generative Adversarial Networks under Limited Data" (arXiv 2104.03310), with the published
    decay. ``real`` and ``fake`` are the running means; they begin at zero.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.real = torch.zeros(())
        self.fake = torch.zeros(())

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty of this batch's mean logits."""
        anchors = self.real.to(real.device), self.fake.to(real.device)
        return F.relu(real - anchors[1]).square() + F.relu(anchors[0] - fake).square()

    @torch.no_grad()
    def follow(self, real: Tensor, fake: Tensor) -> None:
        """Moves the running means towards this batch's."""
        self.real = self.decay * self.real + (1.0 - self.decay) * real.detach().cpu()
        self.fake = self.decay * self.fake + (1.0 - self.decay) * fake.detach().cpu()
