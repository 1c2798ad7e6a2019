"""Training on a CUDA device, or on a fake one."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from models import load_tokenizer
from models.data.datasets import InMemoryDataset
from models.training.config import DiscriminatorConfig, LossConfig, TokenizerRun
from models.training.loop import train
from models.training.pixels import PixelTask
from tests.fake_cuda import FakeCuda

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


@pytest.fixture
def cuda() -> Iterator[None]:
    with nullcontext() if torch.cuda.is_available() else FakeCuda():
        yield


@pytest.mark.parametrize("precision", ["float32", "bfloat16"] if torch.cuda.is_available() else ["bfloat16"])
def test_a_tokenizer_is_trained_on_the_device_with_all_its_losses(
    tokenizer_run: TokenizerRun, tmp_path: Path, precision: str
) -> None:
    run = dataclasses.replace(
        tokenizer_run,
        network=dataclasses.replace(tokenizer_run.network, image_size=32),
        schedule=dataclasses.replace(tokenizer_run.schedule, steps=10),
        optimizer=dataclasses.replace(tokenizer_run.optimizer, precision=precision),
        losses=LossConfig(perceptual_weight=0.02, semantic_weight=0.1, grid_weight=1.0, adversarial_weight=0.004),
        discriminator=DiscriminatorConfig(kind="features", channels=16),
    )
    coarse = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    photographs = InMemoryDataset(coarse.repeat(4, axis=1).repeat(4, axis=2), np.zeros(40, np.int64)).to("cuda")
    assert photographs.batch(torch.arange(4).numpy()).device.type == "cuda"
    figures = train(PixelTask(run, photographs, photographs, "cuda"), tmp_path)
    assert figures["validation_psnr"] > 5
    assert load_tokenizer("mine", weights=tmp_path / "checkpoint").num_tokens == 4
    longer = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, steps=13))
    resumed = train(PixelTask(longer, photographs, photographs, "cuda"), tmp_path, resume=True)
    assert resumed["step"] == 13
