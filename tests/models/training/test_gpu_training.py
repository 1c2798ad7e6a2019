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
from models.training.config import CodebookConfig, DiscriminatorConfig, LossConfig, PrefixConfig, TokenizerRun
from models.training.loop import _Trainer, train
from models.training.pixels import PixelTask
from tests.fake_cuda import FakeCuda

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


@pytest.fixture
def cuda() -> Iterator[FakeCuda | None]:
    """The fake device, or None if there is a real one."""
    with nullcontext() if torch.cuda.is_available() else FakeCuda() as fake:
        yield fake


@pytest.fixture
def run(tokenizer_run: TokenizerRun) -> TokenizerRun:
    """With all losses and tail drop."""
    return dataclasses.replace(
        tokenizer_run,
        network=dataclasses.replace(tokenizer_run.network, image_size=32, min_latent_tokens=1),
        schedule=dataclasses.replace(tokenizer_run.schedule, steps=10),
        losses=LossConfig(perceptual_weight=0.02, semantic_weight=0.1, grid_weight=1.0, adversarial_weight=0.004),
        discriminator=DiscriminatorConfig(kind="features", channels=16),
        prefix=PrefixConfig(),
    )


@pytest.fixture
def photographs() -> InMemoryDataset:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    return InMemoryDataset(coarse.repeat(4, axis=1).repeat(4, axis=2), np.zeros(40, np.int64)).to("cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"] if torch.cuda.is_available() else ["bfloat16"])
def test_a_tokenizer_is_trained_on_the_device_with_all_its_losses(
    run: TokenizerRun, photographs: InMemoryDataset, tmp_path: Path, precision: str
) -> None:
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, precision=precision))
    assert photographs.batch(torch.arange(4).numpy()).device.type == "cuda"
    figures = train(PixelTask(run, photographs, photographs, "cuda"), tmp_path)
    assert figures["validation_psnr"] > 5
    assert load_tokenizer("mine", weights=tmp_path / "checkpoint").num_tokens == 4
    longer = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, steps=13))
    resumed = train(PixelTask(longer, photographs, photographs, "cuda"), tmp_path, resume=True)
    assert resumed["step"] == 13


def test_a_step_whose_figures_are_not_read_does_not_wait_for_the_device(
    run: TokenizerRun, photographs: InMemoryDataset, cuda: FakeCuda | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(run, codebook=CodebookConfig(quantizer_start=3))
    trainer = _Trainer(PixelTask(run, photographs, photographs, "cuda"), None, lambda: 0.0)
    kept_after: list[int] = []  # and batches come from the host
    trainer.task.keep_data_on_device = lambda: kept_after.append(trainer.done)  # type: ignore[method-assign]
    assert trainer.timed_step(0.0)
    if cuda is not None:
        monkeypatch.setattr(cuda.host, "wait", lambda _: pytest.fail("waits for the device"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):  # the codes are initialised in one of them
            assert not trainer.timed_step(0.0)
        assert kept_after == [1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        monkeypatch.undo()
