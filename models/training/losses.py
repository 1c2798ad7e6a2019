"""Loss functions, computed in float32."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pixel_loss(outputs: Tensor, images: Tensor, *, l2_weight: float = 1.0, l1_weight: float = 0.0) -> Tensor:
    """Weighted sum of the mean squared and the mean absolute error; images [B, 3, S, S] in [0, 1]."""
    difference = outputs.float() - images
    return l2_weight * difference.square().mean() + l1_weight * difference.abs().mean()


# Mean differences between neighbouring pixels below this, a quarter of a level of 256, are those of flat images.
_FLAT = 1e-3


def grid_loss(outputs: Tensor, images: Tensor, patch: int) -> Tensor:
    """Penalty for patterns that repeat with the period ``patch`` in outputs [B, 3, S, S] and not in the images.

    In photographs the mean value, and the mean difference to the next pixel, are the same at every position modulo
    ``patch``; a decoder that works patch by patch leaves a pattern in either. The squared deviations of both are added:
    of the means relative to the images' mean difference, of the differences relative to their own mean, so that blur
    costs nothing.
    """
    difference = F.pixel_unshuffle(outputs.float() - images, patch).mean(dim=(0, 2, 3)).view(3, -1)
    pattern = (difference - difference.mean(dim=1, keepdim=True)).square().mean()
    contrast = torch.stack([images.diff(dim=axis).abs().mean() for axis in (2, 3)]).mean()
    loss = pattern / contrast.clamp(min=_FLAT).square()
    for axis in (2, 3):
        loss = loss + (_steps(outputs.float(), patch, axis) - _steps(images, patch, axis)).square().mean()
    return loss


def _steps(images: Tensor, patch: int, axis: int) -> Tensor:
    """Mean absolute difference to the next row or column by position modulo ``patch``, relative to their mean: [P]."""
    steps = F.pad(images.diff(dim=axis).abs().mean(dim=(0, 1, 5 - axis)), (0, 1))  # [S]; the last one is padding
    counts = torch.full((patch,), float(len(steps) // patch), device=steps.device)
    counts[-1] -= 1.0
    means = steps.view(-1, patch).sum(dim=0) / counts
    return means / means.mean().clamp(min=_FLAT)


def proxy_code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy of proxy-code logits [B, N, V] and the frozen 2-D tokenizer's codes int64 [B, N].

    Source: TiTok, first training stage (arXiv 2406.07550, section 3.3).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def masked_token_loss(
    logits: Tensor, tokens: Tensor, masked: Tensor, *, label_smoothing: float, visible_weight: float
) -> Tensor:
    """Weighted mean cross-entropy of logits [B, K, V] and tokens int64 [B, K]; unmasked tokens weigh ``visible_weight``."""
    # As rows of codes: with the codes in the second dimension of three, this takes twice as long on a CPU.
    flat, targets = logits.flatten(0, 1).float(), tokens.flatten()
    each = F.cross_entropy(flat, targets, reduction="none", label_smoothing=label_smoothing)
    weights = torch.where(masked, 1.0, visible_weight).flatten()
    return (each * weights).sum() / weights.sum()


def random_masks(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Masked tokens, bool [B, K]: the arccos schedule at a random time, at least one token."""
    time = torch.rand(batch, generator=generator)
    count = (length * torch.acos(time) / (math.pi / 2)).round().clamp(min=1)
    order = torch.rand(batch, length, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < count[:, None]


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of a discriminator, the mean of real and fake, and over its heads.

    ``real`` and ``fake`` are its logits, [B, 1, H, W] of each head. Source: TiTok's second stage (1d-tokenizer,
    commit 942a96f), after "Geometric GAN" (arXiv 1705.02894).
    """
    each = [0.5 * (F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(each).mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """Adversarial loss of reconstructions: the negated mean logit."""
    return -mean_logit(fake)


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """The mean logit of a discriminator, with equal weights for its heads."""
    return torch.stack([each.mean() for each in logits]).mean()


class LeCam:
    """LeCam regularisation: keeps logits of real images close to the running mean of fake ones, and the reverse.

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
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Updates the running means, on the device of the new ones."""
        self.real = self.decay * self.real.to(real.device) + (1.0 - self.decay) * real.detach()
        self.fake = self.decay * self.fake.to(fake.device) + (1.0 - self.decay) * fake.detach()
