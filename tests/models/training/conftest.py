"""A set of tiny photographs as shards, and runs that take a second."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.titok import TiTokConfig, TransformerSize
from models.training.config import OptimizerConfig, ScheduleConfig, TokenizerRun, TokenizerTraining
from models.training.data import Photographs


def add_member(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def encoded_image(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()


@pytest.fixture(name="add_member")
def add_member_fixture() -> Callable[[tarfile.TarFile, str, bytes], None]:
    """Writes one file into a shard."""
    return add_member


@pytest.fixture(name="encoded_image")
def encoded_image_fixture() -> Callable[..., bytes]:
    """A PNG of noise by seed and size."""
    return encoded_image


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 150 photographs each in two classes; some tests damage them."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "classes.json").write_text(json.dumps({"0": "pets/cat", "1": "pets/dog"}))
    for number in range(2):
        with tarfile.open(folder / f"train-000{number}.tar.gz", "w:gz") as shard:
            for index in range(150 * number, 150 * (number + 1)):
                add_member(shard, f"{index:06d}.png", encoded_image(index))
                add_member(shard, f"{index:06d}.cls", str(index % 2).encode())
    return folder


@pytest.fixture
def tiny_photographs() -> Photographs:
    """Forty images of two colours each, 16x16."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (40, 2, 1, 3), dtype=np.uint8)
    return Photographs(coarse.repeat(8, axis=1).repeat(16, axis=2), random.integers(0, 2, 40))


@pytest.fixture
def tokenizer_run() -> TokenizerRun:
    size = TransformerSize(width=32, layers=1, heads=1)
    return TokenizerRun(
        network=TiTokConfig(
            image_size=16,
            num_latent_tokens=4,
            encoder=size,
            decoder=size,
            encoder_patch_size=8,
            decoder_patch_size=8,
            codebook_size=64,
            token_size=4,
            use_l2_norm=True,
            is_legacy=False,
            finetune_decoder=False,
            pixel_head="conv",
            pixel_head_channels=8,
        ),
        schedule=ScheduleConfig(steps=30, batch_size=8, warmup_steps=5, evaluate_every=10),
        optimizer=OptimizerConfig(muon_lr=3e-3, adamw_lr=3e-3),
        training=TokenizerTraining(quantizer_start=6, dead_after=5, max_shift=2, validation_images=16),
    )
