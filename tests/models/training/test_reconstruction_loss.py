import copy

import pytest
import torch
from torch import Tensor

from models.training.config import DiscriminatorConfig, LossConfig
from models.training.reconstruction_loss import ReconstructionLoss
from models.training.seeding import seeded_generator
from models.training.task import Step

CPU = torch.device("cpu")


def step_at(number: int) -> Step:
    return Step(number, 0.0, seeded_generator(1, number))


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (images * 0.5 + 0.2).requires_grad_(True), images


FEATURES = DiscriminatorConfig(kind="features", channels=8, lr=1e-2)


def test_the_picture_loss_is_the_weighted_sum_of_its_parts(pictures: tuple[Tensor, Tensor]) -> None:
    config = LossConfig(l2_weight=2.0, l1_weight=0.5, perceptual_weight=0.1, adversarial_weight=0.2)
    parts = ReconstructionLoss(config, FEATURES, CPU)(*pictures, step_at(0))
    assert parts["total"].item() == pytest.approx(
        parts["pixels"].item() + 0.1 * parts["perceptual"].item() + 0.2 * parts["adversarial"].item(), rel=1e-5
    )
    parts["total"].backward()
    assert pictures[0].grad is not None
    assert pictures[0].grad.abs().sum() > 0


def test_the_same_picture_is_at_no_perceptual_distance(pictures: tuple[Tensor, Tensor]) -> None:
    loss = ReconstructionLoss(LossConfig(perceptual_weight=1.0), FEATURES, CPU)
    assert loss(pictures[1], pictures[1], step_at(0))["perceptual"].item() == pytest.approx(0.0, abs=1e-6)
    assert loss(*pictures, step_at(0))["perceptual"].item() > 0.1


@pytest.mark.parametrize("kind", ["patch", "features"])
def test_the_discriminator_waits_for_its_step_and_then_learns(pictures: tuple[Tensor, Tensor], kind: str) -> None:
    config = LossConfig(adversarial_weight=0.1, adversarial_start=3)
    loss = ReconstructionLoss(config, DiscriminatorConfig(kind=kind, channels=8, lr=2e-3), CPU)  # type: ignore[arg-type]
    assert "adversarial" not in loss(*pictures, step_at(2))
    assert loss.after_step(step_at(2)) == {}
    hinges = []
    for number in range(3, 33):
        loss(*pictures, step_at(number))["total"].backward()
        hinges.append(loss.after_step(step_at(number))["discriminator"].item())
    assert hinges[-1] < 0.9 * hinges[0]
    assert loss.adversary.lecam.real.item() != loss.adversary.lecam.fake.item()


def test_the_tokenizers_step_leaves_the_discriminator_alone(pictures: tuple[Tensor, Tensor]) -> None:
    loss = ReconstructionLoss(LossConfig(adversarial_weight=0.1), FEATURES, CPU)
    loss(*pictures, step_at(0))["total"].backward()
    assert loss.adversary is not None
    assert all(parameter.grad is None for parameter in loss.adversary.discriminator.parameters())


def test_the_semantic_distance_is_between_what_is_in_the_pictures(pictures: tuple[Tensor, Tensor]) -> None:
    loss = ReconstructionLoss(LossConfig(semantic_weight=0.5), FEATURES, CPU)
    parts = loss(*pictures, step_at(0))
    assert 0.0 < parts["semantic"].item() < 2.0
    assert parts["total"].item() == pytest.approx(parts["pixels"].item() + 0.5 * parts["semantic"].item(), rel=1e-5)
    assert loss(pictures[1], pictures[1], step_at(0))["semantic"].item() == pytest.approx(0.0, abs=1e-5)


def test_a_saved_discriminator_resumes(pictures: tuple[Tensor, Tensor]) -> None:
    config = LossConfig(adversarial_weight=0.1)
    whole, resumed = ReconstructionLoss(config, FEATURES, CPU), ReconstructionLoss(config, FEATURES, CPU)
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
def test_bfloat16_judges_nearly_as_float32_does(pictures: tuple[Tensor, Tensor], kind: str) -> None:
    config = LossConfig(perceptual_weight=1.0, semantic_weight=0.5, adversarial_weight=0.1)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        loss = ReconstructionLoss(config, DiscriminatorConfig(kind=kind, channels=8), CPU, dtype=dtype)  # type: ignore[arg-type]
        parts = loss(*pictures, step_at(0))
        assert all(part.dtype is torch.float32 for part in parts.values())
        (gradient,) = torch.autograd.grad(parts["total"], pictures[0])
        figures = loss.after_step(step_at(0))
        found.append(({name: part.item() for name, part in (parts | figures).items()}, gradient))
    (exact, expected), (near, gradient) = found
    assert near == pytest.approx(exact, rel=0.05, abs=0.01)
    assert near != exact
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9
