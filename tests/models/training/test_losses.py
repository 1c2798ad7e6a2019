from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from models.checkpoints.registry import TOKENIZERS
from models.networks.titok import TiTok, TiTokConfig
from models.training.losses import grid_loss, masked_token_loss, pixel_loss, proxy_code_loss, random_masks

Golden = Mapping[str, np.ndarray]


@pytest.fixture
def golden(golden_case: Callable[[str], Golden]) -> Golden:
    return golden_case("training_losses")


def test_the_masked_token_loss_is_the_published_one(golden: Golden) -> None:
    loss = masked_token_loss(
        torch.from_numpy(golden["mlm_logits"]),
        torch.from_numpy(golden["mlm_targets"]).long(),
        torch.from_numpy(golden["mlm_mask"]),
        label_smoothing=0.1,
        visible_weight=0.1,
    )
    assert loss.item() == pytest.approx(golden["mlm_loss"].item(), rel=1e-6)


def test_the_pixel_loss_adds_absolute_errors() -> None:
    outputs, images = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 1.0]])
    assert pixel_loss(outputs, images, l1_weight=0.1).item() == pytest.approx(0.25 / 2 + 0.1 * 0.5 / 2)


def test_a_grid_costs_and_blur_does_not() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 32, 32, generator=random)
    seamless = grid_loss(0.5 * images + 0.2, images, 8).item()
    assert seamless == pytest.approx(0.0, abs=1e-3)
    dots = torch.zeros(8, 8)
    dots[3, 3] = 0.2
    assert grid_loss(images + dots.repeat(4, 4), images, 8).item() > seamless + 3e-3
    seams = images.clone()
    seams[..., 8::8] += 0.6 * (torch.rand(64, 1, 32, 3, generator=random) < 0.5)
    assert grid_loss(seams, images, 8).item() > seamless + 1e-3


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_flat_images_have_a_finite_grid_loss_and_gradient(value: float) -> None:
    images = torch.full((2, 3, 16, 16), value)
    outputs = images.clone().requires_grad_(True)
    loss = grid_loss(outputs, images, 8)
    loss.backward()
    assert loss.item() == 0.0
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_masks_follow_the_arccos_schedule() -> None:
    masks = random_masks(4000, 32, torch.Generator().manual_seed(0))
    counts = masks.sum(dim=1)
    assert int(counts.min()) >= 1
    # The mean of arccos(u) / (pi / 2) over u in 0..1 is 2 / pi.
    assert counts.float().mean().item() / 32 == pytest.approx(2 / np.pi, abs=0.01)
    assert torch.allclose(masks.float().mean(dim=0), torch.tensor(2 / np.pi), atol=0.04)


@pytest.mark.slow
@torch.inference_mode()
def test_stage_1_losses_are_the_published_ones(
    golden: Golden,
    golden_case: Callable[[str], Golden],
    golden_weights: Callable[[str], dict[str, torch.Tensor]],
) -> None:
    config = TOKENIZERS["titok-s-128"].config
    assert isinstance(config, TiTokConfig)
    with torch.device("meta"):
        network = TiTok(config)
    network.load_state_dict(golden_weights("titok_s128"), assign=True)
    images = torch.from_numpy(golden_case("titok_s128")["images"]).permute(0, 3, 1, 2) / 255.0
    codes, _, quantizer = network.eval().quantize(network.latents(images))
    loss = proxy_code_loss(network.decoder(codes), torch.from_numpy(golden["stage1_proxy_codes"]).long())
    assert loss.item() == pytest.approx(golden["stage1_reconstruction_loss"].item(), rel=1e-4)
    assert quantizer.commitment.item() == pytest.approx(golden["stage1_commitment_loss"].item(), rel=1e-4)
    assert quantizer.codebook.item() == pytest.approx(golden["stage1_codebook_loss"].item(), rel=1e-4)
