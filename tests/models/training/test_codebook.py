import pytest
import torch

from models.data.datasets import InMemoryDataset
from models.training.codebook import Codebook
from models.training.config import OptimizerConfig, TokenizerRun
from models.training.optimizers import build_optimizers
from models.training.pixels import PixelTask
from models.training.seeding import seeded_generator
from models.training.task import Step


def step_at(number: int, progress: float = 0.0) -> Step:
    return Step(number, progress, seeded_generator(42, number))


@pytest.fixture
def task(tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset) -> PixelTask:
    return PixelTask(tokenizer_run, tiny_photographs, tiny_photographs)


@pytest.fixture
def codebook(task: PixelTask) -> Codebook:
    assert task.codebook is not None
    return task.codebook


def test_the_codebook_is_seeded_from_latents(task: PixelTask) -> None:
    before = task.losses(step_at(6))["quantizer"].item()
    task.losses(step_at(5))
    task.after_step(step_at(5), [])
    assert task.losses(step_at(6))["quantizer"].item() < 0.1 * before
    codes = task.network.quantize.embedding.weight
    assert len(torch.unique(codes, dim=0)) == len(codes)


def test_codes_out_of_use_are_revived_and_their_moments_forgotten(task: PixelTask, codebook: Codebook) -> None:
    optimizers = build_optimizers(task.network, OptimizerConfig(muon_lr=0.0, adamw_lr=0.0), torch.float32)
    codes = task.network.quantize.embedding.weight
    torch.nn.init.constant_(codes, 1.0)
    for number in range(6, 12):
        task.losses(step_at(number))["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if number < 11:
            task.after_step(step_at(number, progress=0.9), optimizers)
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizers[1].state[codes][moment].fill_(1.0)
    assert int((codebook.idle >= 4).sum()) == 63  # where all codes are the same the first one wins
    task.after_step(step_at(11), optimizers)
    assert int(codebook.idle.max()) == 0
    assert len(torch.unique(codes.round(decimals=4), dim=0)) == 64
    moments = optimizers[1].state[codes]
    for moment in ("exp_avg", "exp_avg_sq"):
        assert moments[moment][1:].abs().max() == 0
        assert moments[moment][0].min() == 1


def test_no_code_is_revived_near_the_end(task: PixelTask, codebook: Codebook) -> None:
    task.losses(step_at(20))
    codebook.idle[:] = 1000
    before = task.network.quantize.embedding.weight.clone()
    task.after_step(step_at(20, progress=0.9), [])
    assert torch.equal(task.network.quantize.embedding.weight, before)


def test_a_collapsing_codebook_is_warned_of(task: PixelTask, caplog: pytest.LogCaptureFixture) -> None:
    torch.nn.init.constant_(task.network.quantize.embedding.weight, 1.0)
    assert task.evaluate(task.network.eval())["codes_used"] == 1
    assert "1 of 64 codes are in use: the codebook is collapsing" in caplog.text
