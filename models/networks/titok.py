"""TiTok: Vision Transformers that encode an image to a 1-D sequence of tokens and decode it.

::

    image -> patches ─┐                                       ┌─ mask tokens
                      ├─ encoder ─> K latents ─> codes ─> decoder ─> patches ─> pixel head ─> image
    K latent tokens ──┘             [B, K, C]    ids [B, K]

Source: "An Image is Worth 32 Tokens for Reconstruction and Generation" (arXiv 2406.07550, section 3), with the layout
of the published checkpoints (1d-tokenizer, commit 942a96f): tensor names, and the quirks that the weights were trained with.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import attend
from models.networks.maskgit_vqgan import Decoder as PixelDecoder
from models.networks.maskgit_vqgan import MaskGITVQGANConfig, to_channels_last
from models.networks.quantizer import Assignment, VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """Width, number of blocks and number of heads of one Vision Transformer."""

    width: int
    layers: int
    heads: int


SIZES = {
    "small": TransformerSize(width=512, layers=8, heads=8),
    "base": TransformerSize(width=768, layers=12, heads=12),
    "large": TransformerSize(width=1024, layers=24, heads=16),
}


@dataclass(frozen=True, kw_only=True)
class TiTokConfig:
    """Network configuration.

    ``is_legacy`` is the two-stage family (L-32, B-64, S-128): the encoder reinterprets its output buffer, and the head
    predicts MaskGIT-VQGAN codes. With ``finetune_decoder`` a pixel decoder converts a soft mixture of those codes to the
    image; without it a legacy model outputs code logits (training stage 1). One-stage models end in a ``pixel_head``:
    ``linear`` (published) or ``conv``, with convolutions across patch borders. With ``min_latent_tokens`` the decoder was
    trained on the first L tokens of a code, for every L from that number to K (One-D-Piece); None: it needs all K.
    """

    num_latent_tokens: int
    min_latent_tokens: int | None = None
    encoder: TransformerSize
    decoder: TransformerSize
    image_size: int = 256
    encoder_patch_size: int = 16
    decoder_patch_size: int = 16
    quantize_mode: Literal["vq", "vae"] = "vq"
    codebook_size: int = 4096
    token_size: int = 12
    use_l2_norm: bool = False
    commitment_cost: float = 0.25
    is_legacy: bool = True
    finetune_decoder: bool = True
    pixel_head: Literal["linear", "conv"] = "linear"
    pixel_head_channels: int = 64
    pixel_head_blocks: int = 1
    pixel_head_noise: int = 0

    def __post_init__(self) -> None:
        for name in ("encoder_patch_size", "decoder_patch_size"):
            if self.image_size % getattr(self, name):
                raise ValueError(f"image_size {self.image_size} is not a multiple of {name} {getattr(self, name)}")
        for name in ("encoder", "decoder"):
            size: TransformerSize = getattr(self, name)
            if size.width % size.heads:
                raise ValueError(f"{name} width {size.width} is not a multiple of its {size.heads} heads")
        if self.min_latent_tokens is not None and self.quantize_mode == "vae":
            raise ValueError("min_latent_tokens needs quantize_mode 'vq': a VAE decodes all of its latents")
        if self.min_latent_tokens is not None and not 1 <= self.min_latent_tokens <= self.num_latent_tokens:
            raise ValueError(f"min_latent_tokens {self.min_latent_tokens} is not in 1..{self.num_latent_tokens}")
        if self.finetune_decoder and self.quantize_mode == "vae":
            raise ValueError("finetune_decoder needs quantize_mode 'vq': a VAE has no codes to fine-tune on")
        if self.finetune_decoder and not self.is_legacy:
            raise ValueError("finetune_decoder needs is_legacy: only the legacy head predicts MaskGIT-VQGAN codes")
        if self.is_legacy and self.decoder_patch_size != MaskGITVQGANConfig().downsampling:
            raise ValueError("the legacy head needs decoder_patch_size 16: one MaskGIT-VQGAN code per patch")
        if not self.is_legacy and self.pixel_head == "conv" and self.decoder_patch_size % 4:
            raise ValueError(f"the conv pixel head needs a patch size divisible by 4, not {self.decoder_patch_size}")


def _normal(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=std))


class Attention(nn.Module):
    """Multi-head self-attention with packed projections (rows q, k, v)."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.in_proj_weight = _normal(3 * size.width, size.width, std=size.width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size.width))
        self.out_proj = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor, queries: slice, present: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, M, D] for the M positions of ``queries``, which attend to those of the N that are present."""
        width = x.shape[-1]
        if queries == slice(None):
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q = F.linear(x[:, queries], self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, fused=not self.training, present=present))
        return out


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block.

    Residual stream and norms stay float32 for any dtype of the matrices: it costs little and keeps lower precisions
    close to float32.
    """

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width)
        self.attn = Attention(size)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp = MLP(size.width)

    def forward(self, x: Tensor, keep: slice = slice(None), present: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, M, D]: only the positions of ``keep`` are computed and returned.

        Positions that ``present`` bool [B, N] does not mark influence no other position.
        """
        dtype = self.attn.in_proj_weight.dtype
        x = x[:, keep] + self.attn(self.ln_1(x).to(dtype), keep, present)
        out: Tensor = x + self.mlp(self.ln_2(x).to(dtype))
        return out

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Sets the dtype of the matrices."""
        self.attn.to(dtype=dtype)
        self.mlp.to(dtype=dtype)


def _run_blocks(blocks: nn.ModuleList, x: Tensor, keep: slice, present: Tensor | None = None) -> Tensor:
    """Runs the blocks; the last one computes only the positions of ``keep``."""
    for block in blocks[:-1]:
        x = block(x, present=present)
    return blocks[-1](x, keep, present)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Images and latent tokens to latent vectors."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.encoder.width, config.encoder_patch_size
        positions = (config.image_size // patch) ** 2
        outputs = config.token_size * (2 if config.quantize_mode == "vae" else 1)
        scale = width**-0.5
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = _normal(1, width, std=scale)
        self.positional_embedding = _normal(positions + 1, width, std=scale)
        self.latent_token_positional_embedding = _normal(config.num_latent_tokens, width, std=scale)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(config.encoder) for _ in range(config.encoder.layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [0, 1] and latent tokens [K, D] -> float32 [B, K, C], or [B, K, 2C] for a VAE."""
        batch, patch = images.shape[0], self.config.encoder_patch_size
        x = F.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2)  # [B, G*G, 3*P*P]
        x = F.linear(x, self.patch_embed.weight.flatten(1), self.patch_embed.bias)  # [B, G*G, D]
        x = torch.cat([self.class_embedding.expand(batch, -1, -1), x], dim=1) + self.positional_embedding
        latents = (latent_tokens + self.latent_token_positional_embedding).expand(batch, -1, -1)
        x = self.ln_pre(torch.cat([x, latents], dim=1))  # [B, 1 + G*G + K, D]
        x = _run_blocks(self.transformer, x, keep=slice(-self.config.num_latent_tokens, None))
        x = self.ln_post(x)  # [B, K, D]
        if self.config.is_legacy:
            # The published two-stage models read the [K, D] buffer as [D, K]: each "token" mixes features of many
            # positions. Their weights depend on it.
            x = x.reshape(batch, x.shape[2], x.shape[1]).transpose(1, 2)
        return F.linear(x, self.conv_out.weight.flatten(1), self.conv_out.bias).float()


class ConvPixelHead(nn.Module):
    """Patch vectors to pixels by 3x3 convolutions on a 4-pixel and a 2-pixel grid, across patch borders.

    The published one-stage head, a linear map per patch, leaves a visible grid with a small model. ``pixel_head_noise``
    fixed noise maps, the same for every image, allow texture that does not repeat from patch to patch (after the noise
    inputs of StyleGAN, arXiv 1812.04948).
    """

    noise_coarse: Tensor
    noise_fine: Tensor

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        channels, cells = config.pixel_head_channels, (config.decoder_patch_size // 4) ** 2
        self.cells = config.decoder_patch_size // 4
        self.embed = nn.Linear(config.decoder.width, cells * channels)
        self.coarse = nn.ModuleList(self._pair(channels) for _ in range(config.pixel_head_blocks))
        self.up = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.fine = nn.ModuleList(self._pair(channels // 2) for _ in range(config.pixel_head_blocks))
        self.out = nn.Conv2d(channels // 2, 12, 3, padding=1)
        self.maps = config.pixel_head_noise
        if self.maps:
            generator = torch.Generator().manual_seed(0)
            for name, side in (("noise_coarse", config.image_size // 4), ("noise_fine", config.image_size // 2)):
                noise = torch.randn(1, self.maps, side, side, generator=generator, device="cpu")
                self.register_buffer(name, noise.to(self.embed.weight.device))
            self.inject_coarse = nn.Conv2d(self.maps, channels, 1)
            self.inject_fine = nn.Conv2d(self.maps, channels // 2, 1)

    @staticmethod
    def _pair(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, grid: int) -> Tensor:
        """Patches [B, G*G, D] -> images [B, 3, S, S], not clamped."""
        x = self.embed(x).transpose(1, 2).unflatten(2, (grid, grid))  # [B, cells*cells*channels, G, G]
        x = F.pixel_shuffle(x, self.cells)
        if self.maps:
            x = x + self.inject_coarse(self.noise_coarse)
        for pair in self.coarse:
            x = x + pair(F.gelu(x))
        x = F.pixel_shuffle(self.up(F.gelu(x)), 2)
        if self.maps:
            x = x + self.inject_fine(self.noise_fine)
        for pair in self.fine:
            x = x + pair(F.gelu(x))
        return F.pixel_shuffle(self.out(F.gelu(x)), 2)


class Decoder(nn.Module):
    """Codes to code logits (legacy) or to pixels."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.decoder.width, config.decoder_patch_size
        self.grid = config.image_size // patch
        scale = width**-0.5
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.class_embedding = _normal(1, width, std=scale)
        self.positional_embedding = _normal(self.grid**2 + 1, width, std=scale)
        self.mask_token = _normal(1, 1, width, std=scale)
        self.latent_token_positional_embedding = _normal(config.num_latent_tokens, width, std=scale)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(config.decoder) for _ in range(config.decoder.layers))
        self.ln_post = nn.LayerNorm(width)
        if config.is_legacy:
            codes = MaskGITVQGANConfig().codebook_size
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codes, 1))
        elif config.pixel_head == "linear":
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch * patch, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        else:
            self.head = ConvPixelHead(config)

    def forward(self, codes: Tensor, present: Tensor | None = None) -> Tensor:
        """Codes [B, L, C] -> logits [B, G*G, 1024] (legacy) or images [B, 3, S, S], not clamped; float32.

        L is at most K. ``present`` bool [B, L] marks the codes of each row that exist: the others have no influence.
        """
        batch, length = codes.shape[:2]
        latents = self.decoder_embed(codes) + self.latent_token_positional_embedding[:length]
        masks = self.mask_token.expand(batch, self.grid**2, -1)
        x = torch.cat([self.class_embedding.expand(batch, -1, -1), masks], dim=1) + self.positional_embedding
        if present is not None:
            present = torch.cat([present.new_ones(batch, x.shape[1]), present], dim=1)
        x = self.ln_pre(torch.cat([x, latents], dim=1))  # [B, 1 + G*G + L, D]
        x = _run_blocks(self.transformer, x, slice(1, 1 + self.grid**2), present)
        return self._head(self.ln_post(x)).float()

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Sets the dtype of the blocks' matrices, and of the head if it is more than a few operations."""
        for block in self.transformer:
            block.set_compute_dtype(dtype)  # type: ignore[operator]
        if self.config.is_legacy:
            self.ffn.to(dtype=dtype)
        elif self.config.pixel_head == "conv":
            to_channels_last(self.head.to(dtype=dtype))

    def _head(self, x: Tensor) -> Tensor:
        if not self.config.is_legacy and self.config.pixel_head == "conv":
            return self.head(x.to(self.head.embed.weight.dtype), self.grid)  # type: ignore[no-any-return]
        # 1x1 convolutions over the grid, computed as linear layers over the patches.
        for layer in self.ffn:
            if isinstance(layer, nn.Conv2d):
                x = F.linear(x.to(layer.weight.dtype), layer.weight.flatten(1), layer.bias)
            else:
                x = layer(x)
        if self.config.is_legacy:
            return x
        patch = self.config.decoder_patch_size
        x = x.reshape(-1, self.grid, self.grid, patch, patch, 3)  # [B, gy, gx, y, x, rgb]
        x = x.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, self.grid * patch, self.grid * patch)
        return self.conv_out(x)  # type: ignore[no-any-return]


class Posterior(NamedTuple):
    """Gaussian posterior of a VAE encoder: float32 [B, K, C] each."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, float32 [B, K, C]."""
        return torch.exp(0.5 * self.logvar)

    def kl(self) -> Tensor:
        """KL divergence from the unit normal, summed over channels, in nats: float32 [B, K]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=2)


class TiTok(nn.Module):
    """Encoder, quantizer and decoder. Images are RGB in [0, 1], float32 [B, 3, S, S]."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.width
        self.latent_tokens = _normal(config.num_latent_tokens, width, std=width**-0.5)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.quantize_mode == "vq":
            norm, cost = config.use_l2_norm, config.commitment_cost
            self.quantize = VectorQuantizer(
                config.codebook_size, config.token_size, use_l2_norm=norm, commitment_cost=cost
            )
        if config.finetune_decoder:
            vqgan = MaskGITVQGANConfig(image_size=config.image_size)
            self.pixel_quantize = VectorQuantizer(vqgan.codebook_size, vqgan.latent_channels, use_l2_norm=False)
            self.pixel_decoder = PixelDecoder(vqgan)

    def latents(self, images: Tensor) -> Tensor:
        """Images -> latents float32 [B, K, C] before quantization; for a VAE the posterior's mean."""
        return self.posterior(images).mean if self.config.quantize_mode == "vae" else self._encode(images)

    def posterior(self, images: Tensor) -> Posterior:
        """Images -> the posterior of a VAE variant."""
        mean, logvar = self._encode(images).chunk(2, dim=2)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder(images, self.latent_tokens)  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Assignment:
        """Images -> nearest codes, ids int64 [B, K]."""
        return self.quantize.assign(self.latents(images))

    def decode(self, ids: Tensor, present: Tensor | None = None) -> Tensor:
        """Ids int64 [B, L] in 0..V-1 -> images float32 [B, 3, S, S], not clamped. See :meth:`Decoder.forward`."""
        return self.decode_codes(self.quantize.lookup(ids), present)

    def decode_codes(self, codes: Tensor, present: Tensor | None = None) -> Tensor:
        """Codes, or a VAE's latents, float32 [B, L, C] -> images float32 [B, 3, S, S], not clamped."""
        out: Tensor = self.decoder(codes, present)
        return self.mix(out) if self.config.is_legacy else out

    def mix(self, logits: Tensor) -> Tensor:
        """Logits [B, G*G, 1024] -> images: the pixel decoder sees the *soft* mixture of codes, not the likeliest code."""
        weights = self.pixel_quantize.embedding.weight
        mixture = logits.softmax(dim=-1).to(weights.dtype) @ weights  # [B, G*G, 256], and channels last in memory
        mixture = mixture.view(-1, self.decoder.grid, self.decoder.grid, mixture.shape[2]).permute(0, 3, 1, 2)
        return self.pixel_decoder.decode_in_parts(mixture).float()

    def set_compute_dtype(self, *, encoder: torch.dtype, decoder: torch.dtype) -> None:
        """Sets the dtype of matrices and convolutions; norms, residual stream, embeddings and quantizer stay float32."""
        for block in self.encoder.transformer:
            block.set_compute_dtype(encoder)  # type: ignore[operator]
        self.decoder.set_compute_dtype(decoder)
        if self.config.finetune_decoder:
            self.pixel_quantize.to(dtype=decoder)
            to_channels_last(self.pixel_decoder.to(dtype=decoder))
