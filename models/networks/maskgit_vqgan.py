"""MaskGIT-VQGAN: 2-D image tokenizer with 256 tokens of 1,024 codes, TiTok's baseline and training target.

::

    image [B, 3, 256, 256] -> Encoder -> [B, 256, 16, 16] -> codes [B, 256] -> Decoder -> image

The decoder is also the *pixel decoder* of the published TiTok models. Source: MaskGIT (arXiv 2202.04200, section 3.1)
as published with 1d-tokenizer (commit 942a96f), with the tensor names of that checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.quantizer import Assignment, VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class MaskGITVQGANConfig:
    """Network configuration; the defaults are the published ones."""

    image_size: int = 256
    hidden_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    latent_channels: int = 256
    codebook_size: int = 1024

    @property
    def downsampling(self) -> int:
        """Side of the square that one code covers, in pixels."""
        return 1 << (len(self.channel_multipliers) - 1)

    @property
    def grid_size(self) -> int:
        """Codes per side of the grid."""
        return self.image_size // self.downsampling


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions.

    If the number of channels changes, the 1x1 shortcut sees the *convolved* features, and the block's input is dropped.
    This looks like a mistake, but the published weights were trained with it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = (
            nn.Conv2d(out_channels, out_channels, 1, bias=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = x if self.nin_shortcut is None else self.nin_shortcut(h)
        out: Tensor = h + shortcut
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, optionally followed by upsampling and a convolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, *, upsample: bool = False) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.Sequential(*(ResidualBlock(widths[i], widths[i + 1]) for i in range(blocks)))
        self.upsample_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H or 2H, W or 2W]."""
        out: Tensor = self.block(x)
        if self.upsample_conv is not None:
            out = self.upsample_conv(F.interpolate(out, scale_factor=2.0, mode="nearest"))
        return out


class Encoder(nn.Module):
    """Images [B, 3, S, S] in [0, 1] -> latents [B, 256, S/16, S/16]."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * m for m in (1, *config.channel_multipliers)]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], config.residual_blocks) for i in range(len(widths) - 1)
        )
        self.mid = nn.Sequential(*(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.residual_blocks)))
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(images.to(self.conv_in.weight.dtype))
        for i, level in enumerate(self.down):
            if i:
                x = F.avg_pool2d(x, 2)
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Latents [B, 256, G, G] -> images [B, 3, 16G, 16G], nominally in [0, 1], not clamped."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * m for m in (*config.channel_multipliers, config.channel_multipliers[-1])]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = nn.Sequential(*(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.residual_blocks)))
        # Numbered from the finest resolution, as in the encoder; they run from the last to the first.
        self.up = nn.ModuleList(
            Level(widths[i + 1], widths[i], config.residual_blocks, upsample=i > 0) for i in range(len(widths) - 1)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        x = self.mid(self.conv_in(latents.to(self.conv_in.weight.dtype)))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out

    def decode_in_parts(self, latents: Tensor) -> Tensor:
        """See the class. On a CPU one image at a time: the activations of several exceed its caches (1.4 times slower).

        All at once where the computation is recorded for any batch size.
        """
        is_recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        parts = (latents,) if latents.device.type != "cpu" or is_recorded else latents.split(1)  # type: ignore[no-untyped-call]
        return torch.cat([self(part) for part in parts])


class MaskGITVQGAN(nn.Module):
    """Encoder, codebook without normalisation, and decoder."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.latent_channels, use_l2_norm=False)
        self.decoder = Decoder(config)

    def latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [0, 1] -> latents float32 [B, G*G, C] in row-major order."""
        latents: Tensor = self.encoder(images)
        return latents.float().flatten(2).transpose(1, 2)

    def encode(self, images: Tensor) -> Assignment:
        """Images [B, 3, S, S] in [0, 1] -> nearest codes, ids int64 [B, G*G]."""
        return self.quantize.assign(self.latents(images))

    def decode(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, G*G] in 0..V-1 -> images [B, 3, S, S], not clamped."""
        grid = self.config.grid_size
        codes = self.quantize.lookup(ids).view(-1, grid, grid, self.config.latent_channels).permute(0, 3, 1, 2)
        images: Tensor = self.decoder(codes)
        return images

    def set_compute_dtype(self, *, encoder: torch.dtype, decoder: torch.dtype) -> None:
        """Sets the dtype of the convolutions; the quantizer stays float32."""
        to_channels_last(self.encoder.to(dtype=encoder))
        to_channels_last(self.decoder.to(dtype=decoder))


def to_channels_last(module: nn.Module) -> None:
    """Stores convolution weights with channels innermost, the order that bf16 kernels prefer."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
