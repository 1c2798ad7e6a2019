import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.training.config import DiscriminatorConfig, LossConfig, OptimizerConfig, TokenizerRun
from models.training.reconstruction_loss import ReconstructionLoss
from models.training.seeding import seeded_generator
from models.training.task import Step

CPU = torch.device("cpu")
FEATURES = DiscriminatorConfig(kind="features", channels=8, lr=1e-2)


LossOf = Callable[..., ReconstructionLoss]


def step_at(number: int) -> Step:
    return Step(number, 0.0, seeded_generator(1, number))


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (images * 0.5 + 0.2).requires_grad_(True), images


@pytest.fixture
def loss_of(tokenizer_run: TokenizerRun) -> LossOf:
    """The loss of a run with these losses and this discriminator, at a constant learning rate."""
    schedule = replace(tokenizer_run.schedule, warmup_steps=0)

    def build(
        losses: LossConfig,
        discriminator: DiscriminatorConfig = FEATURES,
        *,
        dtype: torch.dtype = torch.float32,
        **more: Any,
    ) -> ReconstructionLoss:
        run = replace(tokenizer_run, **{"losses": losses, "discriminator": discriminator, "schedule": schedule, **more})
        return ReconstructionLoss(run, CPU, dtype=dtype)

    return build


def test_the_picture_loss_is_the_weighted_sum_of_its_parts(loss_of: LossOf, pictures: tuple[Tensor, Tensor]) -> None:
    config = LossConfig(l2_weight=2.0, l1_weight=0.5, perceptual_weight=0.1, adversarial_weight=0.2)
    parts = loss_of(config)(*pictures, step_at(0))
    assert parts["total"].item() == pytest.approx(
        parts["pixels"].item() + 0.1 * parts["perceptual"].item() + 0.2 * parts["adversarial"].item(), rel=1e-5
    )
    parts["total"].backward()
    assert pictures[0].grad is not None
    assert pictures[0].grad.abs().sum() > 0


def test_the_same_picture_is_at_no_perceptual_distance(loss_of: LossOf, pictures: tuple[Tensor, Tensor]) -> None:
    loss = loss_of(LossConfig(perceptual_weight=1.0))
    assert loss(pictures[1], pictures[1], step_at(0))["perceptual"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss(*pictures, step_at(0))["perceptual"].item() > 0.1


@pytest.mark.parametrize("kind", ["patch", "features"])
def test_the_discriminator_waits_for_its_step_and_then_learns(
    loss_of: LossOf, pictures: tuple[Tensor, Tensor], kind: str
) -> None:
    config = LossConfig(adversarial_weight=0.1, adversarial_start=3)
    loss = loss_of(config, DiscriminatorConfig(kind=kind, channels=8, lr=2e-3))  # type: ignore[arg-type]
    assert "adversarial" not in loss(*pictures, step_at(2))
    assert loss.after_step(step_at(2)) == {}
    hinges = []
    for number in range(3, 33):
        loss(*pictures, step_at(number))["total"].backward()
        hinges.append(loss.after_step(step_at(number))["discriminator"].item())
    assert hinges[-1] < 0.9 * hinges[0]
    assert loss.adversary.lecam.real.item() != loss.adversary.lecam.fake.item()


def test_the_tokenizers_step_leaves_the_discriminator_alone(loss_of: LossOf, pictures: tuple[Tensor, Tensor]) -> None:
    loss = loss_of(LossConfig(adversarial_weight=0.1))
    loss(*pictures, step_at(0))["total"].backward()
    assert loss.adversary is not None
    assert all(parameter.grad is None for parameter in loss.adversary.discriminator.parameters())


def test_the_semantic_distance_is_between_what_is_in_the_pictures(
    loss_of: LossOf, pictures: tuple[Tensor, Tensor]
) -> None:
    loss = loss_of(LossConfig(semantic_weight=0.5))
    parts = loss(*pictures, step_at(0))
    assert 0.0 < parts["semantic"].item() < 2.0
    assert parts["total"].item() == pytest.approx(parts["pixels"].item() + 0.5 * parts["semantic"].item(), rel=1e-5)
    assert loss(pictures[1], pictures[1], step_at(0))["semantic"].item() == pytest.approx(0.0, abs=1e-5)


def test_a_saved_discriminator_resumes(loss_of: LossOf, pictures: tuple[Tensor, Tensor]) -> None:
    config = LossConfig(adversarial_weight=0.1)
    whole, resumed = loss_of(config), loss_of(config)
    for number in range(4):
        if number == 2:
            assert whole.adversary is not None
            assert resumed.adversary is not None
            resumed.adversary.load_state_dict(copy.deepcopy(whole.adversary.state_dict()))
        for loss in (whole, resumed) if number >= 2 else (whole,):
            parts = loss(*pictures, step_at(number))
            figures = loss.after_step(step_at(number))
            last = {name: value.item() for name, value in (parts | figures).items()}
            if loss is whole:
                expected = last
    assert last == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["patch", "features"])
def test_bfloat16_judges_nearly_as_float32_does(loss_of: LossOf, pictures: tuple[Tensor, Tensor], kind: str) -> None:
    config = LossConfig(perceptual_weight=1.0, semantic_weight=0.5, adversarial_weight=0.1)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        loss = loss_of(config, DiscriminatorConfig(kind=kind, channels=8), dtype=dtype)  # type: ignore[arg-type]
        parts = loss(*pictures, step_at(0))
        assert all(part.dtype is torch.float32 for part in parts.values())
        (gradient,) = torch.autograd.grad(parts["total"], pictures[0])
        figures = loss.after_step(step_at(0))
        found.append(({name: part.item() for name, part in (parts | figures).items()}, gradient))
    (exact, expected), (near, gradient) = found
    assert near == pytest.approx(exact, rel=0.05, abs=0.01)
    assert near != exact
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_the_discriminator_has_a_warm_up_of_its_own_and_clipped_gradients(
    loss_of: LossOf, pictures: tuple[Tensor, Tensor], tokenizer_run: TokenizerRun
) -> None:
    loss = loss_of(
        LossConfig(adversarial_weight=0.1, adversarial_start=10),
        DiscriminatorConfig(channels=4, lr=1.0),
        schedule=replace(tokenizer_run.schedule, steps=30, warmup_steps=4),
        optimizer=OptimizerConfig(adamw_lr=1.0, gradient_clip=1e-4),
    )
    assert loss.adversary is not None
    adversary = loss.adversary
    norms: list[float] = []
    adversary.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(nn.utils.get_total_norm([p.grad for p in adversary.discriminator.parameters()])))
    )
    rates = []
    for number in (10, 11, 29):
        loss(*pictures, Step(number, number / 30, seeded_generator(1, number)))
        loss.after_step(Step(number, number / 30, seeded_generator(1, number)))
        rates.append(adversary.optimizer.param_groups[0]["lr"])
    assert rates[:2] == pytest.approx([0.25, 0.5])
    assert rates[2] == pytest.approx(tokenizer_run.schedule.final_lr, rel=0.6)
    assert norms == pytest.approx([1e-4] * 3, rel=1e-2)
