from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from models.training.discriminators import FeatureDiscriminator, PatchDiscriminator
from models.training.losses import LeCam, discriminator_loss, generator_loss, mean_logit

Golden = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def golden(golden_case: Callable[[str], Golden]) -> Golden:
    return golden_case("training_losses")


@pytest.fixture(scope="module")
def logits(
    golden: Golden,
    golden_case: Callable[[str], Golden],
    golden_weights: Callable[[str], dict[str, torch.Tensor]],
) -> list[list[torch.Tensor]]:
    """Ours for the photographs of the golden case, real and fake."""
    network = PatchDiscriminator()
    # The kernels of the blur are constants: the manifest says not to fill them.
    kernels = {name: tensor for name, tensor in network.state_dict().items() if name.endswith("kernel")}
    network.load_state_dict(golden_weights("discriminator_stage2") | kernels)
    found = []
    for case, names in (("titok_s128", "disc_real_images"), ("titok_b64", "disc_fake_images")):
        arrays = golden_case(case)
        assert arrays["image_names"].tolist() == golden[names].tolist()
        with torch.inference_mode():
            found.append(network([torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255.0]))
    return found


def test_the_patch_discriminator_gives_the_published_logits(logits: list[list[torch.Tensor]], golden: Golden) -> None:
    for ours, name in zip(logits, ("disc_logits_real", "disc_logits_fake"), strict=True):
        torch.testing.assert_close(ours[0], torch.from_numpy(golden[name]), rtol=0, atol=1e-5)


def test_hinge_and_lecam_are_the_published_ones(logits: list[list[torch.Tensor]], golden: Golden) -> None:
    real, fake = logits
    assert discriminator_loss(real, fake).item() == pytest.approx(golden["hinge_d"].item(), rel=1e-5)
    lecam = LeCam()
    lecam.real, lecam.fake = map(torch.tensor, golden["lecam_ema"].tolist())
    assert lecam.penalty(mean_logit(real), mean_logit(fake)).item() == pytest.approx(golden["lecam"].item(), rel=1e-5)


def test_lecam_follows_both_means_slowly() -> None:
    lecam = LeCam(decay=0.9)
    for _ in range(2):
        lecam.update(torch.tensor(1.0), torch.tensor(-2.0))
    assert lecam.real.item() == pytest.approx(0.19)
    assert lecam.fake.item() == pytest.approx(-0.38)


def test_every_head_counts_the_same_however_large_its_maps() -> None:
    heads = [torch.full((2, 1, 8, 8), 3.0), torch.full((2, 1, 1, 1), -1.0)]
    assert mean_logit(heads).item() == pytest.approx(1.0)
    assert generator_loss(heads).item() == pytest.approx(-1.0)


def test_a_feature_discriminator_has_a_head_for_every_map() -> None:
    maps = [torch.randn(2, 16, 32, 32), torch.randn(2, 24, 16, 16)]
    logits = FeatureDiscriminator((16, 24), 8)(maps)
    assert [tuple(each.shape) for each in logits] == [(2, 1, 16, 16), (2, 1, 16, 16)]


def test_a_feature_discriminator_learns_to_separate_two_kinds() -> None:
    torch.manual_seed(0)
    network = FeatureDiscriminator((4,), 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        real, fake = torch.randn(8, 4, 8, 8) + 0.5, torch.randn(8, 4, 8, 8) - 0.5
        loss = discriminator_loss(network([real]), network([fake]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert mean_logit(network([real])).item() > mean_logit(network([fake])).item() + 0.5
