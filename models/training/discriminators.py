"""Discriminators of the adversarial loss.

``PatchDiscriminator`` classifies pixels and is the published one. ``FeatureDiscriminator`` classifies the features that
the perceptual loss computes anyway: far cheaper, and useful from the first step on (Sauer et al., "Projected GANs
Converge Faster", arXiv 2111.01007).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_SLOPE = 0.1
_POOLED = 16


class _Blur(nn.Module):
    """Halves the resolution after a binomial low-pass filter against aliasing (arXiv 1904.11486)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", (line[:, None] * line / 64.0)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


class PatchDiscriminator(nn.Module):
    """One tensor of images [B, 3, S, S] in [0, 1] -> one of logits [B, 1, 16, 16].

    Layout and names follow TiTok's second training stage (1d-tokenizer, commit 942a96f); ``channels`` is 128 there.
    """

    def __init__(self, channels: int = 128, stages: int = 3) -> None:
        super().__init__()
        self.block_in = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.LeakyReLU(_SLOPE))
        widths = [channels, *(channels << stage for stage in range(stages))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, padding=1),
                _Blur(),
                nn.GroupNorm(min(32, widths[i + 1]), widths[i + 1]),
                nn.LeakyReLU(_SLOPE),
            )
            for i in range(stages)
        )
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(_SLOPE), nn.Conv2d(widths[-1], 1, 5, padding=2)
        )

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        (images,) = inputs
        x = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        return [self.to_logits(F.adaptive_max_pool2d(x, _POOLED))]


class FeatureDiscriminator(nn.Module):
    """Feature maps [B, C_i, H_i, W_i] of a frozen network, the finest first -> logits [B, 1, h_i, w_i] of each.

    Every head is spectrally normalised (arXiv 1802.05957). The head of the finest maps works at half their resolution:
    at full resolution it would take a third of the time of all heads.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            self._head(width, min(channels, 2 * width), stride=1 if number else 2)
            for number, width in enumerate(in_channels)
        )

    @staticmethod
    def _head(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            spectral_norm(nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)),
            nn.LeakyReLU(_SLOPE),
            spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.LeakyReLU(_SLOPE),
            spectral_norm(nn.Conv2d(channels, 1, 1)),
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        return [head(maps) for head, maps in zip(self.heads, features, strict=True)]
