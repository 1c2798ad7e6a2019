"""Encoder and decoder with the pixel conversions inside: uint8 images in, uint8 images out.

These modules are what other runtimes compile and what ``models.export`` writes to files.
"""

import copy

import torch
from torch import Tensor, nn

from models.networks.maskgit_vqgan import MaskGITVQGAN
from models.networks.titok import TiTok


class ImageToLatents(nn.Module):
    """Images uint8 [B, S, S, 3] -> latents float32 [B, K, C]; for a VAE the posterior's mean."""

    def __init__(self, network: TiTok | MaskGITVQGAN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.network.latents(to_float(images))


class ImageToIds(nn.Module):
    """Images uint8 [B, S, S, 3] -> ids int64 [B, K] and the margins of :func:`nearest_codes`."""

    def __init__(self, network: TiTok | MaskGITVQGAN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return nearest_codes(self.network, self.network.latents(to_float(images)))


class TokensToImage(nn.Module):
    """Ids int64 [B, L], or a VAE's latents float32 [B, K, C] -> images uint8 [B, S, S, 3].

    L is K, or less if the network is prefix-decodable. ``present`` bool [B, L] marks the ids that exist, by default all.
    """

    def __init__(self, network: TiTok | MaskGITVQGAN) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """See the class."""
        if isinstance(self.network, MaskGITVQGAN):
            return to_uint8(self.network.decode(tokens))
        if self.network.config.quantize_mode == "vae":
            return to_uint8(self.network.decode_codes(tokens))
        return to_uint8(self.network.decode(tokens, present))


def nearest_codes(network: TiTok | MaskGITVQGAN, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents float32 [B, K, C] -> ids int64 [B, K] and margins float32 [B, K], relative to the latents' scale."""
    assignment = network.quantize.assign(latents)
    if network.quantize.use_l2_norm:  # on the unit sphere
        return assignment.ids, assignment.margin
    return assignment.ids, assignment.margin / latents.square().sum(dim=2).clamp(min=1.0)


def decoder_in_float32(network: TiTok | MaskGITVQGAN) -> TiTok | MaskGITVQGAN:
    """The network with a copy of its decoder in float32; it shares the encoder. The weights keep their precision."""
    copied, parts = copy.copy(network), ("decoder", "pixel_quantize", "pixel_decoder")
    copied._modules = {
        name: copy.deepcopy(module).float() if name in parts and module is not None else module
        for name, module in network._modules.items()
    }
    return copied


def to_float(images: Tensor) -> Tensor:
    """Uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div(255.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, 3, S, S] -> uint8 [B, S, S, 3], clamped to [0, 1] and rounded to 256 levels."""
    pixels = images.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
