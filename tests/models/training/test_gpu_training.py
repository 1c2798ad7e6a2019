"""Training on a CUDA device; skipped without one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models import load_tokenizer
from models.data.datasets import InMemoryDataset
from models.training.config import DiscriminatorConfig, LossConfig, TokenizerRun
from models.training.loop import train
from models.training.pixels import PixelTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tokenizer_is_trained_on_the_device_with_all_its_losses(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, precision: str
) -> None:
    run = dataclasses.replace(
        tokenizer_run,
        network=dataclasses.replace(tokenizer_run.network, image_size=32),
        optimizer=dataclasses.replace(tokenizer_run.optimizer, precision=precision),
        losses=LossConfig(perceptual_weight=0.02, semantic_weight=0.1, grid_weight=1.0, adversarial_weight=0.004),
        discriminator=DiscriminatorConfig(kind="features", channels=16),
    )
    larger = InMemoryDataset(tiny_photographs.images.repeat(2, axis=1).repeat(2, axis=2), tiny_photographs.labels)
    photographs = larger.to("cuda")
    assert photographs.batch(torch.arange(4).numpy()).device.type == "cuda"
    figures = train(PixelTask(run, photographs, photographs, "cuda"), tmp_path)
    assert figures["validation_psnr"] > 5
    assert load_tokenizer("mine", weights=tmp_path / "checkpoint").num_tokens == 4
    longer = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, steps=40))
    resumed = train(PixelTask(longer, photographs, photographs, "cuda"), tmp_path, resume=True)
    assert resumed["step"] == 40
