import dataclasses

import pytest
import torch

from models.data.photographs import Photographs
from models.training.config import TokenizerRun
from models.training.loop import Step
from models.training.optimizers import build_optimizers
from models.training.order import rows_of_step, seeded
from models.training.tokenizer import TokenizerTask


def step_at(number: int, progress: float = 0.0) -> Step:
    return Step(number, progress, seeded(42, number))


@pytest.fixture
def task(tokenizer_run: TokenizerRun, tiny_photographs: Photographs) -> TokenizerTask:
    return TokenizerTask(tokenizer_run, tiny_photographs, tiny_photographs)


def test_the_quantizer_takes_no_part_before_its_time(task: TokenizerTask) -> None:
    losses = task.losses(step_at(0))
    assert losses["loss"].item() == losses["pixels"].item()
    later = task.losses(step_at(6))
    assert later["loss"].item() == pytest.approx(
        sum(later[name].item() for name in ("pixels", "commitment", "codebook"))
    )


def test_the_codebook_is_seeded_from_latents(task: TokenizerTask) -> None:
    before = task.losses(step_at(5))
    task.after_step(step_at(5), [])
    after = task.losses(step_at(5))
    assert after["codebook"].item() < 0.1 * before["codebook"].item()
    codes = task.network.quantize.embedding.weight
    assert len(torch.unique(codes, dim=0)) == len(codes)


def test_codes_out_of_use_are_revived_and_their_moments_forgotten(task: TokenizerTask) -> None:
    optimizers = build_optimizers(
        task.network, muon_lr=0.0, adamw_lr=0.0, adamw_betas=(0.9, 0.98), weight_decay=0.0, dtype=torch.float32
    )
    codes = task.network.quantize.embedding.weight
    torch.nn.init.constant_(codes, 1.0)
    for number in range(6, 12):
        task.losses(step_at(number))["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert int((task.idle >= 5).sum()) == 63  # where all codes are the same the first one wins
    task.after_step(step_at(11), optimizers)
    assert int(task.idle.max()) == 0
    assert len(torch.unique(codes.round(decimals=4), dim=0)) == 64
    moments = optimizers[1].state[codes]
    assert moments["exp_avg"][1:].abs().max() == 0
    assert moments["exp_avg"][0].abs().max() > 0


def test_no_code_is_revived_near_the_end(task: TokenizerTask) -> None:
    task.losses(step_at(20))
    task.idle[:] = 1000
    before = task.network.quantize.embedding.weight.clone()
    task.after_step(step_at(20, progress=0.9), [])
    assert torch.equal(task.network.quantize.embedding.weight, before)


def test_a_linear_pixel_head_starts_at_middle_grey_too(
    tokenizer_run: TokenizerRun, tiny_photographs: Photographs
) -> None:
    linear = dataclasses.replace(tokenizer_run.network, pixel_head="linear")
    task = TokenizerTask(dataclasses.replace(tokenizer_run, network=linear), tiny_photographs, tiny_photographs)
    hidden = task.network.decoder.ffn(torch.randn(4, 32, 1, 1))
    assert hidden.mean().item() == pytest.approx(0.45, abs=0.05)


def test_a_two_stage_network_is_refused(tokenizer_run: TokenizerRun, tiny_photographs: Photographs) -> None:
    legacy = dataclasses.replace(
        tokenizer_run.network, is_legacy=True, image_size=32, encoder_patch_size=16, decoder_patch_size=16
    )
    with pytest.raises(ValueError, match="is_legacy = false"):
        TokenizerTask(dataclasses.replace(tokenizer_run, network=legacy), tiny_photographs, tiny_photographs)


def test_every_photograph_is_seen_once_an_epoch_in_a_new_order() -> None:
    epochs = [[row for step in range(5 * e, 5 * e + 5) for row in rows_of_step(40, 8, step, 42)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]
