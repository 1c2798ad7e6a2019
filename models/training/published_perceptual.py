"""The perceptual losses of the published recipes. torchvision downloads the weights of their networks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import CheckpointError

# Mean and standard deviation of red, green and blue.
_CHANNELS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
_SIZE = 224
# lpips + 0.1 * convnext is what the published mean, weighted 1.0 and 0.1, times its weight of 1.1 comes to.
_LOGIT_WEIGHT = 0.1


def load_published_perceptual(name: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss ``convnext-small`` or ``lpips+convnext-small``: images [B, 3, S, S] in [0, 1] -> a scalar.

    Raises ``CheckpointError`` if a package or the weights are missing.
    """
    try:
        from torchvision.models import ConvNeXt_Small_Weights, convnext_small

        networks: list[Any] = [convnext_small(weights=ConvNeXt_Small_Weights.IMAGENET1K_V1)]
        if name != "convnext-small":
            from lpips import LPIPS

            networks.append(LPIPS(net="vgg", verbose=False))
    except (ImportError, OSError) as error:
        raise CheckpointError(
            f"the published perceptual loss needs the extra 'published' and a download of its weights ({error}); "
            f'losses.perceptual = "lite0" needs neither'
        ) from error
    convnext, *lpips = (network.eval().requires_grad_(False).to(device) for network in networks)

    def loss(outputs: Tensor, images: Tensor) -> Tensor:
        distance = logit_distance(convnext, outputs, images)
        if lpips:
            distance = lpips[0](outputs, images, normalize=True).mean() + _LOGIT_WEIGHT * distance
        return distance

    return loss


def logit_distance(classifier: nn.Module, outputs: Tensor, images: Tensor) -> Tensor:
    """Mean squared difference of an ImageNet classifier's logits (TiTok's second stage, 1d-tokenizer, 942a96f).

    Images [B, 3, S, S] in [0, 1] are resized to 224 pixels, bilinear with antialiasing, and normalised for ImageNet.
    """

    def logits(pictures: Tensor) -> Tensor:
        resized = F.interpolate(pictures, size=_SIZE, mode="bilinear", align_corners=False, antialias=True)
        # Numbers, since a tensor of them would be copied to the device in every step, which waits for it.
        normalised = [(x - mean) / std for x, (mean, std) in zip(resized.unbind(1), _CHANNELS, strict=True)]
        out: Tensor = classifier(torch.stack(normalised, dim=1))
        return out

    with torch.no_grad():
        target = logits(images)
    return F.mse_loss(logits(outputs), target)
