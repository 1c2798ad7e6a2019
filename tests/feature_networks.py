"""Feature networks for tests of FID, in files: TorchScript, and Inception with synthetic weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.evaluation.inception import Inception
from models.networks.skip_init import skip_init
from tests.golden.weights import fill


class _Detector(nn.Module):
    """As StyleGAN's: probabilities, or features if asked for; here means of the four quarters of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(12, 5)
        with torch.no_grad():
            self.output.weight.copy_(torch.arange(60).reshape(5, 12).remainder(7) / 50)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return features if return_features else self.output(features).softmax(1)


class _Plain(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


class _Other(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.embedding(tokens[:, 0, 0], torch.eye(4))


_NETWORKS = {"detector": _Detector, "plain": _Plain, "other": _Other}


def write_torchscript(path: Path, kind: str = "detector") -> Path:
    """A ``detector`` of 12 features and five classes, ``plain`` with three and none, or an ``other`` network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(_NETWORKS[kind]()).save(path)
    return path


def inception_tensors() -> dict[str, Tensor]:
    """Weights of the Inception network by ``tests.golden``, such that activations keep their size."""
    with skip_init():
        shapes = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        tensor = fill(name, shape)
        if name.endswith("conv.weight"):
            tensor *= np.float32(1.4)
        tensors[name] = torch.from_numpy(tensor + 1 if name.endswith("running_var") else tensor)
    return tensors
