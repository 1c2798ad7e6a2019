"""Networks that fit each other and take milliseconds, for tests of everything around them."""

from __future__ import annotations

from typing import Literal

import torch

from models.checkpoints.bundled import DEFAULT_VARIANT
from models.checkpoints.registry import GENERATORS
from models.generation import Generator
from models.networks.generator import GeneratorConfig, build_generator
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.runtime.selection import TORCH, Runtime
from models.tokenizer import Tokenizer

__all__ = ["tiny_generator", "tiny_network", "tiny_tokenizer"]

NUM_TOKENS, CODEBOOK_SIZE, IMAGE_SIZE, NUM_CLASSES = 16, 64, 32, 5


def tiny_tokenizer(
    *,
    dtype: str = "float32",
    quantize_mode: Literal["vq", "vae"] = "vq",
    device: str = "cpu",
    min_tokens: int | None = None,
    runtime: Runtime = TORCH,
) -> Tokenizer:
    """16 ids of 64 codes for 32x32 pixels; random weights, the same every time. Prefix-decodable from ``min_tokens`` on."""
    return Tokenizer(
        tiny_network(quantize_mode, min_tokens),
        name="tiny",
        digest="0" * 64,
        source="test",
        device=torch.device(device),
        dtype=dtype,
        runtime=runtime,
    )


def tiny_network(quantize_mode: Literal["vq", "vae"] = "vq", min_tokens: int | None = None) -> TiTok:
    """The network of the tiny tokenizer."""
    torch.manual_seed(0)
    size = TransformerSize(width=32, layers=2, heads=2)
    network = TiTok(
        TiTokConfig(
            num_latent_tokens=NUM_TOKENS,
            min_latent_tokens=min_tokens,
            encoder=size,
            decoder=size,
            image_size=IMAGE_SIZE,
            codebook_size=CODEBOOK_SIZE,
            token_size=5,
            quantize_mode=quantize_mode,
            is_legacy=False,
            finetune_decoder=False,
        )
    )
    if quantize_mode == "vq":  # the codes of a fresh codebook are hardly apart
        torch.nn.init.normal_(network.quantize.embedding.weight)
    return network


def tiny_generator(
    model_type: Literal["ViT", "UViT"] = "UViT", *, dtype: str = "float32", device: str = "cpu"
) -> Generator:
    """A generator of the tiny tokenizer's ids, for five classes; random weights, the same every time."""
    torch.manual_seed(0)
    network = build_generator(
        GeneratorConfig(
            model_type=model_type,
            image_seq_len=NUM_TOKENS,
            codebook_size=CODEBOOK_SIZE,
            condition_num_classes=NUM_CLASSES,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    )
    for parameter in network.parameters():  # small random networks say the same of every position otherwise
        torch.nn.init.normal_(parameter, std=0.3)
    return Generator(
        network,
        variant=GENERATORS[DEFAULT_VARIANT],
        names=[f"class {index}" for index in range(NUM_CLASSES)],
        digest="0" * 64,
        source="test",
        device=torch.device(device),
        dtype=dtype,
    )
