import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.errors import CheckpointError
from models.training.published_perceptual import load_published_perceptual, logit_distance


class Classifier(nn.Module):
    """Remembers what it was shown; its logits are the mean colour."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.shown = pictures
        return pictures.mean(dim=(2, 3))


def test_logits_are_of_224_pixels_normalised_for_imagenet() -> None:
    classifier = Classifier()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = (images * 0.5).requires_grad_(True)
    loss = logit_distance(classifier, outputs, images)
    resized = F.interpolate(outputs, size=224, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(classifier.shown, (resized - mean) / std)
    expected = ((images - outputs).mean(dim=(2, 3)) / std.flatten()).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    loss.backward()
    assert outputs.grad is not None


class Distances(nn.Module):
    """As LPIPS: a distance for each pair of images, which are in [0, 1] if ``normalize``."""

    def forward(self, outputs: torch.Tensor, images: torch.Tensor, *, normalize: bool) -> torch.Tensor:
        assert normalize
        return (outputs - images).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_the_losses_are_weighted_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier()
    models = ModuleType("torchvision.models")
    models.ConvNeXt_Small_Weights = SimpleNamespace(IMAGENET1K_V1="published")  # type: ignore[attr-defined]
    models.convnext_small = lambda *, weights: {"published": classifier}[weights]  # type: ignore[attr-defined]
    lpips = ModuleType("lpips")
    lpips.LPIPS = lambda **options: {"vgg": Distances()}[options["net"]]  # type: ignore[attr-defined]
    for module in (ModuleType("torchvision"), models, lpips):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs, device = images * 0.5, torch.device("cpu")
    logits = logit_distance(classifier, outputs, images).item()
    assert load_published_perceptual("convnext-small", device)(outputs, images).item() == pytest.approx(logits)
    both = load_published_perceptual("lpips+convnext-small", device)(outputs, images).item()
    assert both == pytest.approx((outputs - images).abs().mean().item() + 0.1 * logits)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_its_packages_the_published_loss_says_what_to_do() -> None:
    with pytest.raises(
        CheckpointError, match=r"needs the extra 'published' .* losses.perceptual = \"lite0\" needs neither"
    ):
        load_published_perceptual("convnext-small", torch.device("cpu"))
