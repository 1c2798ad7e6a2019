"""Real pictures in small pieces, and the smallest of tokenizers and generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints.bundled import DEFAULT_VARIANT
from models.checkpoints.registry import GENERATORS
from models.evaluation.lite0 import Lite0, load_lite0
from models.generation import Generator
from models.networks.generator import GeneratorConfig, build_generator
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.tokenizer import Tokenizer

SIZE = TransformerSize(width=32, layers=1, heads=2)


@pytest.fixture(scope="session")
def lite0() -> Lite0:
    return load_lite0()


@pytest.fixture(scope="session")
def crops(photographs: list[Image.Image]) -> np.ndarray:
    """Sixteen pieces of photographs, uint8 [16, 64, 64, 3]."""
    pieces = [
        np.asarray(photograph.resize((256, 256)))[y : y + 64, x : x + 64]
        for photograph in photographs
        for y, x in ((0, 0), (0, 128), (96, 96), (160, 64))
    ]
    return np.stack(pieces)


def tiny_tokenizer(mode: str, min_tokens: int | None = None) -> Tokenizer:
    torch.manual_seed(0)
    config = TiTokConfig(
        image_size=64,
        encoder=SIZE,
        decoder=SIZE,
        num_latent_tokens=16,
        min_latent_tokens=min_tokens,
        quantize_mode=mode,
        codebook_size=64,
        is_legacy=False,
        finetune_decoder=False,
    )
    return Tokenizer(
        TiTok(config), name="tiny", digest="0" * 64, source="test", device=torch.device("cpu"), dtype="float32"
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """64x64 images, 16 tokens of 64 codes, 12 bytes; random weights."""
    return tiny_tokenizer("vq")


@pytest.fixture(scope="session")
def prefix_tokenizer() -> Tokenizer:
    """The same, and its decoder accepts fewer tokens, too."""
    return tiny_tokenizer("vq", 1)


@pytest.fixture(scope="session")
def vae() -> Tokenizer:
    """The same without codes: 16 vectors of 12 numbers."""
    return tiny_tokenizer("vae")


@pytest.fixture(scope="session")
def generator() -> Generator:
    """Of the tiny tokenizer's codes, three classes; random weights."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        model_type="UViT",
        image_seq_len=16,
        codebook_size=64,
        condition_num_classes=3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return Generator(
        build_generator(config),
        variant=GENERATORS[DEFAULT_VARIANT],
        names=["cat", "dog", "clam"],
        digest="0" * 64,
        source="test",
        device=torch.device("cpu"),
        dtype="float32",
    )
