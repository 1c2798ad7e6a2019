"""The ``config.json`` of what was trained, in the shape of the published ones."""

from __future__ import annotations

from typing import Any

from models.networks.titok import TiTokConfig

__all__ = ["checkpoint_config"]


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
        "pixel_head_noise": network.pixel_head_noise,
    }
    return {"model": {"vq_model": vq_model}, "dataset": {"preprocessing": {"crop_size": network.image_size}}}
