"""Lengths of tail drop: their distribution, schedule and effect on the losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models import load_tokenizer
from models.data.datasets import InMemoryDataset
from models.errors import ConfigError
from models.training.config import PrefixConfig, TokenizerRun
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.seeding import seeded_generator
from models.training.tail_drop import TailDrop
from models.training.task import Step


@pytest.fixture
def prefix_run(tokenizer_run: TokenizerRun) -> TokenizerRun:
    network = dataclasses.replace(tokenizer_run.network, min_latent_tokens=1)
    return dataclasses.replace(tokenizer_run, network=network, prefix=PrefixConfig(full_share=0.3))


def step_at(progress: float, number: int = 9) -> Step:
    return Step(number, progress, seeded_generator(42, number))


def shares(run: TokenizerRun, progress: float = 0.0, **settings: object) -> dict[int, float]:
    """How often each length is drawn."""
    drop = TailDrop(PrefixConfig(**settings), run.network)  # type: ignore[arg-type]
    lengths, counts = drop.draw(4000, step_at(progress)).unique(return_counts=True)  # type: ignore[no-untyped-call]
    return dict(zip(lengths.tolist(), (counts / 4000).tolist(), strict=True))


def test_all_lengths_are_equally_likely_as_published(prefix_run: TokenizerRun) -> None:
    assert shares(prefix_run) == pytest.approx(dict.fromkeys(range(1, 5), 0.25), abs=0.03)


def test_the_distribution_the_full_share_and_its_schedule_are_set(prefix_run: TokenizerRun) -> None:
    settings = {"lengths": (1, 2, 2, 2), "full_share": 0.2, "final_full_share": 0.6}
    assert shares(prefix_run, 0.0, **settings) == pytest.approx({1: 0.2, 2: 0.6, 4: 0.2}, abs=0.03)
    assert shares(prefix_run, 1.0, **settings) == pytest.approx({1: 0.1, 2: 0.3, 4: 0.6}, abs=0.03)


def test_a_curriculum_begins_with_all_tokens(prefix_run: TokenizerRun) -> None:
    assert shares(prefix_run, 0.0, curriculum_until=0.5).keys() == {4}
    assert shares(prefix_run, 0.25, curriculum_until=0.5).keys() == {2, 3, 4}
    assert shares(prefix_run, 0.5, curriculum_until=0.5).keys() == {1, 2, 3, 4}


def test_a_batch_has_one_length_where_the_config_says_so(prefix_run: TokenizerRun) -> None:
    drop = TailDrop(PrefixConfig(each="batch"), prefix_run.network)
    drawn = [drop(torch.zeros(8, 4, 2), step_at(0.0, number)) for number in range(8)]
    assert {codes.shape[1] for codes, _ in drawn} == {1, 2, 3, 4}
    assert all(present is None for _, present in drawn)


def test_the_perceptual_loss_of_few_tokens_weighs_less_where_the_config_says_so(prefix_run: TokenizerRun) -> None:
    codes, present = torch.zeros(2, 4, 2), torch.tensor([[True, False, False, False], [True] * 4])
    drop = TailDrop(PrefixConfig(perceptual_exponent=0.5), prefix_run.network)
    weights = drop.perceptual_weights(codes, present)
    assert weights is not None
    assert weights.tolist() == [0.5, 1.0]
    of_a_batch = drop.perceptual_weights(codes[:, :1], None)
    assert of_a_batch is not None
    assert of_a_batch.tolist() == [0.5, 0.5]
    assert TailDrop(PrefixConfig(), prefix_run.network).perceptual_weights(codes, present) is None


def test_a_runs_loss_uses_the_weights_of_its_lengths(
    prefix_run: TokenizerRun, tiny_photographs: InMemoryDataset
) -> None:
    losses = dataclasses.replace(prefix_run.losses, perceptual="lite0", perceptual_weight=0.1, semantic_weight=0.1)
    parts = []
    for exponent in (0.0, 1.0):
        prefix = PrefixConfig(lengths=(1,), perceptual_exponent=exponent)  # a quarter of the tokens
        run = dataclasses.replace(prefix_run, losses=losses, prefix=prefix)
        task = PixelTask(run, tiny_photographs, tiny_photographs)
        parts.append({name: part.item() for name, part in task.losses(step_at(0.0)).items()})
    assert parts[1]["pixels"] == parts[0]["pixels"]
    for name in ("perceptual", "semantic"):
        assert parts[1][name] == pytest.approx(parts[0][name] / 4, rel=1e-5)


def test_dropped_tokens_get_no_gradient_from_the_image(
    prefix_run: TokenizerRun, tiny_photographs: InMemoryDataset
) -> None:
    task = PixelTask(prefix_run, tiny_photographs, tiny_photographs)
    codes = torch.randn(8, 4, 4, requires_grad=True)
    kept, present = task.drop_tail(codes, step_at(0.0))
    assert present is not None
    task.network.train()
    task.network.decode_codes(kept, present).square().sum().backward()  # type: ignore[no-untyped-call]
    assert codes.grad is not None
    assert ((codes.grad[:, : kept.shape[1]] != 0).any(dim=2) == present).all()


def test_a_run_with_tail_drop_resumes_and_ends_in_a_prefix_decodable_checkpoint(
    prefix_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    schedule = dataclasses.replace(prefix_run.schedule, steps=12, evaluate_every=6)
    run = dataclasses.replace(prefix_run, schedule=schedule)
    losses: list[dict[int, float]] = [{}, {}]

    def stop_at_9(step: int, _: float, figures: dict[str, float]) -> None:
        losses[0][step] = figures["loss"]
        if step == 9:
            raise KeyboardInterrupt

    for report in (stop_at_9, lambda step, _, figures: losses[1].update({step: figures["loss"]})):
        try:
            task = PixelTask(run, tiny_photographs, tiny_photographs)
            figures = train(task, tmp_path, report=report, resume=bool(losses[0]))
        except KeyboardInterrupt:
            continue
    assert {step: losses[1][step] for step in (7, 8, 9)} == {step: losses[0][step] for step in (7, 8, 9)}
    assert {"validation_psnr", "validation_psnr_1", "validation_psnr_2"} <= figures.keys()
    assert load_tokenizer("mine", weights=tmp_path / "checkpoint").min_tokens == 1


def test_a_section_that_does_not_fit_the_network_is_an_error(
    prefix_run: TokenizerRun, tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset
) -> None:
    def build(run: TokenizerRun) -> PixelTask:
        return PixelTask(run, tiny_photographs, tiny_photographs)

    with pytest.raises(ConfigError, match=r"needs network\.min_latent_tokens"):
        build(dataclasses.replace(tokenizer_run, prefix=PrefixConfig()))
    with pytest.raises(ConfigError, match="needs the section prefix"):
        build(dataclasses.replace(prefix_run, prefix=None))
    with pytest.raises(ConfigError, match=r"prefix\.lengths are 1 to 4, not 5"):
        build(dataclasses.replace(prefix_run, prefix=PrefixConfig(lengths=(1, 5))))
    losses = dataclasses.replace(prefix_run.losses, perceptual="convnext-small", perceptual_weight=0.1)
    with pytest.raises(ConfigError, match=r"perceptual_exponent needs losses\.perceptual = 'lite0'"):
        build(dataclasses.replace(prefix_run, losses=losses, prefix=PrefixConfig(perceptual_exponent=1.0)))
