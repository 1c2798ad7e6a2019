"""Sampling steps: seeds, schedules, guidance, and independence of the other rows in a batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.generation import Generator
from models.sampling.settings import MAX_STEPS, SamplingSettings
from models.sampling.steps import (
    SamplingRow,
    StepNoise,
    StepParameters,
    apply_guidance,
    pack_rows,
    sample_step,
    unpack_rows,
)
from tests.tiny_models import tiny_generator

DEMO = SamplingSettings(steps=6, guidance_scale=3.0, guidance_decay="linear", temperature=4.0)


@pytest.fixture(scope="module", params=["UViT", "ViT"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return tiny_generator(request.param)


def finish(generator: Generator, rows: list[SamplingRow]) -> torch.Tensor:
    while unfinished := [row for row in rows if row.step < row.settings.steps]:
        generator.step(unfinished)
    return torch.stack([row.tokens for row in rows])


def parameters(*rows: SamplingRow) -> StepParameters:
    return unpack_rows(pack_rows(rows))[1]


def test_tokens_are_determined_by_the_seed(generator: Generator) -> None:
    first, again, other = (generator.generate([2], seeds=[seed], preset="demo") for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
    assert ((first >= 0) & (first < 64)).all()
    as_arrays = generator.generate(torch.tensor([2]), seeds=np.array([7]), preset="demo")  # type: ignore[arg-type]
    assert (as_arrays == first).all()


def test_a_row_does_not_depend_on_rows_with_other_steps_and_settings(generator: Generator) -> None:
    others = [
        SamplingSettings(steps=3, guidance_scale=0.0, temperature=1.0),
        SamplingSettings(steps=9, guidance_scale=5.0, guidance_decay="power-cosine", temperature=2.0),
        SamplingSettings(steps=2, guidance_scale=1.0, temperature=0.0, softmax_annealing=True),
    ]
    expected = finish(generator, [generator.row(3, 42, DEMO)])
    row = generator.row(3, 42, DEMO)
    other_rows = [
        generator.row(label, seed, settings)
        for seed, (label, settings) in enumerate(zip([None, 1, 4], others, strict=True))
    ]
    generator.step(other_rows)  # they are a step ahead when the row joins
    generator.step([*other_rows[:2], row])
    assert (finish(generator, [row, *other_rows])[0] == expected[0]).all()


def test_advance_is_a_pure_function_of_the_rows(generator: Generator) -> None:
    rows = [generator.row(label, seed, DEMO) for seed, label in enumerate([None, 2, 4, None, 1])]
    before = [(row.step, row.tokens.clone()) for row in rows]
    first, again = generator.advance(rows), generator.advance(rows)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert all(
        row.step == step and torch.equal(row.tokens, tokens) for row, (step, tokens) in zip(rows, before, strict=True)
    )
    # Guided rows are computed first; the results are in the order of the rows.
    for row, tokens in zip(rows, first.tokens, strict=True):
        assert torch.equal(generator.advance([row]).tokens[0], tokens)


def test_a_row_can_be_resumed_at_any_step(generator: Generator) -> None:
    tokens, step, finished = None, 0, False
    while not finished:
        advance = generator.advance([generator.row(2, 7, DEMO, step=step, tokens=tokens)])
        known = advance.tokens[0] != generator.codebook_size
        assert torch.equal(advance.tokens[0][known], advance.sampled[0][known])
        assert (advance.sampled < generator.codebook_size).all()
        tokens, step, finished = advance.tokens[0], step + 1, bool(advance.finished[0])
    assert step == DEMO.steps
    assert tokens is not None
    assert torch.equal(tokens, generator.generate([2], seeds=[7], **vars(DEMO))[0])


def test_a_close_decision_is_repeated_unbatched(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [generator.row(label, seed, DEMO) for seed, label in enumerate([1, 2, None])]
    unbatched = [generator.advance([row]) for row in rows]
    step = generator.stepper

    def batch_dependent(table: torch.Tensor, *static: int) -> tuple[torch.Tensor, ...]:
        tokens, sampled, margins = step(table, *static)
        return (tokens + 1, sampled + 1, torch.zeros_like(margins)) if len(table) > 1 else (tokens, sampled, margins)

    batch_dependent.sizes = ()  # type: ignore[attr-defined]
    monkeypatch.setattr(generator, "stepper", batch_dependent)
    together = generator.advance(rows)
    for place, expected in enumerate(unbatched):
        assert torch.equal(together.tokens[place], expected.tokens[0])
        assert torch.equal(together.sampled[place], expected.sampled[0])


def test_invalid_row_states_are_rejected(generator: Generator) -> None:
    tokens = torch.zeros(16, dtype=torch.int64)
    for wrong in ({"label": 5}, {"label": -2}, {"step": 6}, {"step": -1}):
        with pytest.raises(ValueError, match="out of range"):
            generator.row(**{"label": 0, "seed": 0, "settings": DEMO, **wrong})  # type: ignore[arg-type]
    for bad in (tokens[:15], tokens.int(), tokens - 1, tokens + 65):
        with pytest.raises(ValueError, match="token"):
            generator.row(0, 0, DEMO, tokens=bad)
    with pytest.raises(TypeError, match="SamplingSettings, not dict"):
        generator.row(0, 0, vars(DEMO))  # type: ignore[arg-type]


def test_none_and_minus_one_are_the_null_class(generator: Generator) -> None:
    none, minus_one = (generator.generate([label], seeds=[5], preset="demo") for label in (None, -1))
    assert (none == minus_one).all()


def test_guidance_of_zero_uses_conditional_logits_only(generator: Generator) -> None:
    settings = SamplingSettings(steps=4, guidance_scale=0.0)
    row = generator.row(1, 0, settings)
    assert not row.needs_unconditional
    conditional = torch.randn(1, 16, 64)
    assert torch.equal(apply_guidance(parameters(row), conditional, torch.full_like(conditional, 99.0)), conditional)


@pytest.mark.parametrize("decay", ["constant", "linear", "power-cosine"])
def test_guidance_follows_the_published_formula_of_its_decay(decay: str) -> None:
    settings = SamplingSettings(steps=8, guidance_scale=4.0, guidance_decay=decay)  # type: ignore[arg-type]
    conditional, unconditional = torch.randn(2, 1, 4, 8)
    row = SamplingRow(0, 0, settings, torch.zeros(4, dtype=torch.int64), step=5)
    weight = settings.guidance_weight(5)
    base = unconditional if decay == "power-cosine" else conditional
    expected = base + weight * (conditional - unconditional)
    assert torch.allclose(apply_guidance(parameters(row), conditional, unconditional), expected)


def test_schedules_have_the_published_end_points() -> None:
    linear, cosine = (
        SamplingSettings(steps=8, guidance_scale=6.9, guidance_decay=d) for d in ("linear", "power-cosine")
    )
    assert linear.guidance_weight(0) == 0.0
    assert not linear.needs_unconditional(0)
    assert cosine.guidance_weight(0) == 1.0
    assert cosine.needs_unconditional(0)
    assert linear.masked_fraction(7) == 0.0
    assert linear.token_noise_scale(7) == linear.confidence_noise_scale(7) == 0.0
    annealed = SamplingSettings(steps=8, guidance_scale=1.0, softmax_annealing=True)
    assert annealed.logit_divisor(0) == pytest.approx(1.2)
    assert annealed.logit_divisor(7) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [0, 3])
def test_a_token_temperature_samples_from_the_softmax_in_every_step(step: int) -> None:
    settings = SamplingSettings(steps=4, guidance_scale=0.0, temperature=0.0, token_temperature=0.5)
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = [SamplingRow(0, seed, settings, torch.full((8,), 3), step) for seed in range(2000)]
    table = parameters(*rows)
    noise = StepNoise.of(table, 8, 3)
    outcome = sample_step(table, logits.expand(len(rows), 8, 3), torch.full((len(rows), 8), 3), noise, mask_token=3)
    shares = torch.bincount(outcome.sampled.flatten(), minlength=3) / outcome.sampled.numel()
    assert shares.tolist() == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.012)  # five standard errors


def test_without_a_token_temperature_the_last_step_takes_the_likeliest_tokens() -> None:
    row = SamplingRow(0, 1, DEMO, torch.full((8,), 3), DEMO.steps - 1)
    logits = torch.tensor([0.4, 0.5, 0.1]).log().expand(1, 8, 3)
    outcome = sample_step(parameters(row), logits, row.tokens[None], StepNoise.of(parameters(row), 8, 3), mask_token=3)
    assert outcome.tokens.tolist() == [[1] * 8]


@pytest.mark.parametrize(("steps", "num_tokens"), [(1, 8), (8, 32), (64, 8), (MAX_STEPS, 4), (3, 1)])
def test_known_tokens_are_kept_and_all_tokens_are_known_at_the_end(steps: int, num_tokens: int) -> None:
    settings = SamplingSettings(steps=steps, guidance_scale=0.0, temperature=3.0)
    row = SamplingRow(0, 1, settings, torch.full((num_tokens,), 16))
    torch.manual_seed(1)
    known = 0
    for _ in range(steps):
        noise = StepNoise.of(parameters(row), num_tokens, 16)
        before = row.tokens
        logits = torch.randn(1, num_tokens, 16)
        after = sample_step(parameters(row), logits, before[None], noise, mask_token=16).tokens[0]
        assert (after[before != 16] == before[before != 16]).all()
        assert int((after != 16).sum()) >= known
        known = int((after != 16).sum())
        row.tokens, row.step = after, row.step + 1
    assert row.step == row.settings.steps
    assert known == num_tokens


def test_noise_is_uniform_and_differs_by_seed_step_and_stream() -> None:
    unknown = torch.full((1,), 4096)
    rows = [SamplingRow(0, seed, DEMO, unknown, step) for seed, step in itertools.product((1, 2), (0, 1))]
    noise = StepNoise.of(parameters(*rows), 32, 4096)
    assert noise.token.min() > 0.0
    assert noise.token.max() < 1.0
    assert noise.token.mean().item() == pytest.approx(0.5, abs=2e-3)
    assert noise.token.var().item() == pytest.approx(1 / 12, abs=1e-3)
    deciles = torch.histc(noise.token, bins=10, min=0, max=1) / noise.token.numel()
    assert (deciles - 0.1).abs().max() < 2e-3
    flat = noise.token.flatten(1) - 0.5
    correlation = (flat @ flat.T) / flat.shape[1] * 12
    assert (correlation - torch.eye(4)).abs().max() < 0.02
    neighbours = (flat[:, 1:] * flat[:, :-1]).mean() * 12
    assert neighbours.abs() < 0.01


def test_noise_never_changes_between_releases() -> None:
    """The same seed gives the same image after an upgrade."""
    noise = StepNoise.of(parameters(SamplingRow(0, 7, DEMO, torch.full((2,), 3), 2)), 2, 3)
    expected = torch.tensor(NOISE_OF_SEED_7_STEP_2)
    assert torch.equal(noise.token[0], expected)


NOISE_OF_SEED_7_STEP_2 = [
    [0.09075301885604858, 0.7039937376976013, 0.03909116983413696],
    [0.5115835070610046, 0.21927422285079956, 0.3492886424064636],
]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("steps", 0),
        ("steps", MAX_STEPS + 1),
        ("guidance_scale", -0.1),
        ("guidance_scale", float("nan")),
        ("temperature", 101.0),
        ("token_temperature", -1.0),
        ("guidance_power", 0.0),
    ],
)
def test_settings_out_of_range_are_rejected_by_name(member: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{member} .* is out of range"):
        SamplingSettings(**{"steps": 8, "guidance_scale": 1.0, member: value})  # type: ignore[arg-type]


def test_a_class_out_of_range_is_rejected(generator: Generator) -> None:
    for label in (5, -2, 1000):
        with pytest.raises(ValueError, match=r"out of range 0\.\.4"):
            generator.generate([label], seeds=[0])


def test_presets_and_settings_are_checked_by_name(generator: Generator) -> None:
    with pytest.raises(ValueError, match="published, demo, fast"):
        generator.generate([0], seeds=[0], preset="best")
    with pytest.raises(ValueError, match="called magic"):
        generator.generate([0], seeds=[0], magic=1)
    with pytest.raises(ValueError, match="2 labels need as many seeds"):
        generator.generate([0, 1], seeds=[0])


def test_logits_accept_arrays_and_tensors(generator: Generator) -> None:
    tokens, labels = np.full((2, 16), 64), np.array([3, -1])
    tokens[:, :5] = np.arange(5)
    expected = generator.logits(torch.from_numpy(tokens), [3, None])
    assert (expected.dtype, tuple(expected.shape)) == (torch.float32, (2, 16, 64))
    read_only = tokens.copy()
    read_only.flags.writeable = False
    for same in (tokens, read_only, tokens.astype(np.uint16), torch.from_numpy(tokens).int()):
        for classes in (labels, torch.from_numpy(labels), labels.tolist()):
            assert torch.equal(generator.logits(same, classes), expected)


def test_logits_reject_other_shapes_dtypes_and_ids(generator: Generator) -> None:
    tokens = np.zeros((2, 16), np.int64)
    for wrong, labels in ((tokens[:, :15], [0, 0]), (tokens[0], [0]), (tokens, [0]), (tokens.astype(float), [0, 0])):
        with pytest.raises(ValueError, match=r"expected integer tokens \[B, 16\] and B labels"):
            generator.logits(wrong, labels)
    for wrong in (tokens - 1, tokens + 65):
        with pytest.raises(ValueError, match=r"token ids are 0\.\.63, or 64"):
            generator.logits(wrong, [0, 0])
    with pytest.raises(ValueError, match=r"class 5 is out of range 0\.\.4"):
        generator.logits(tokens, np.array([0, 5]))
