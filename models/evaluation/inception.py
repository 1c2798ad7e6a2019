"""The Inception network of FID: features and class weights, from a file that the caller provides.

::

    uint8 [B, 3, H, W] -> 299 x 299 -> (x - 128) / 128 -> convolutions -> Mixed_5b..7c -> mean: features [B, 2048]
                                                                        features x class weights: logits of 1008 classes

Nothing here downloads. The file is either the weights that torch-fidelity and pytorch-fid publish
(``pt_inception-2015-12-05``; safetensors with the same names, too), or a TorchScript network such as StyleGAN's
``inception-2015-12-05.pt``. The first is the TensorFlow graph of 2015-12-05, from which published FID come: TensorFlow 1's
bilinear resizing, average pooling without the padding, and maximum pooling in the last block (source: torch-fidelity,
``feature_extractor_inceptionv3.py``, Apache-2.0).
"""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoints.loading import load_strictly, open_checkpoint
from models.errors import CheckpointError
from models.networks.skip_init import skip_init
from models.runtime.precision import FORMATS

CLASSES, FEATURES = 1008, 2048
_SIZE = 299
_EPSILON = 1e-3
# Parts of other files with these weights that the features do not depend on.
_UNUSED = ("num_batches_tracked", "AuxLogits.")


class _Layer(NamedTuple):
    name: str
    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1


_Branch = Sequence[Sequence[_Layer]]
"""Steps one after the other; layers of one step have the same input, and their outputs are concatenated."""


def _chain(prefix: str, *layers: tuple[int, int | tuple[int, int]], stride: int = 1) -> _Branch:
    """Layers ``prefix_1``, ``prefix_2`` ... of (channels, kernel); ``stride`` is that of the last."""
    count = len(layers)
    return [
        [_Layer(prefix if count == 1 else f"{prefix}_{number}", *layer, stride if number == count else 1)]
        for number, layer in enumerate(layers, 1)
    ]


def _fork(prefix: str, *layers: tuple[int, int | tuple[int, int]]) -> _Branch:
    """As ``_chain``, and then a 1x3 and a 3x1 layer side by side."""
    last = len(layers) + 1
    ends = [_Layer(f"{prefix}_{last}a", 384, (1, 3)), _Layer(f"{prefix}_{last}b", 384, (3, 1))]
    return [[_Layer(f"{prefix}_{number}", *layer)] for number, layer in enumerate(layers, 1)] + [ends]


def _sevens(channels: int) -> tuple[_Branch, ...]:
    wide, high = (1, 7), (7, 1)
    return (
        _chain("branch1x1", (192, 1)),
        _chain("branch7x7", (channels, 1), (channels, wide), (192, high)),
        _chain("branch7x7dbl", (channels, 1), (channels, high), (channels, wide), (channels, high), (192, wide)),
    )


_FIVES = (
    _chain("branch1x1", (64, 1)),
    _chain("branch5x5", (48, 1), (64, 5)),
    _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
)
_FORKS = (_chain("branch1x1", (320, 1)), _fork("branch3x3", (384, 1)), _fork("branch3x3dbl", (448, 1), (384, 3)))
_AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_MAXIMUM = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_HALVE = partial(F.max_pool2d, kernel_size=3, stride=2)


class _Norm(nn.Module):
    """Batch norm with fixed statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=_EPSILON)


class _Convolution(nn.Module):
    def __init__(self, channels: int, layer: _Layer, *, padding: bool) -> None:
        super().__init__()
        kernel = (layer.kernel, layer.kernel) if isinstance(layer.kernel, int) else layer.kernel
        around = (kernel[0] // 2, kernel[1] // 2) if padding and layer.stride == 1 else 0
        self.conv = nn.Conv2d(channels, layer.channels, kernel, layer.stride, around, bias=False)
        self.bn = _Norm(layer.channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, and pooling with a 1x1 convolution of ``pool_channels``, if there are any."""

    def __init__(
        self, channels: int, branches: Sequence[_Branch], pool: Callable[[Tensor], Tensor], pool_channels: int = 0
    ) -> None:
        super().__init__()
        self._branches, self._pool = branches, pool
        for branch in branches:
            width = channels
            for step in branch:
                for layer in step:
                    self.add_module(layer.name, _Convolution(width, layer, padding=True))
                width = sum(layer.channels for layer in step)
        pooled = _Layer("branch_pool", pool_channels, 1)
        self.branch_pool = _Convolution(channels, pooled, padding=True) if pool_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self._branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(layer.name)(y) for layer in step], dim=1)
            outputs.append(y)
        return torch.cat([*outputs, self.branch_pool(self._pool(x))], dim=1)


class Inception(nn.Module):
    """The network with the published parameter names. ``class_weights`` float32 [1008, 2048] are those of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, _Layer("", 32, 3, 2), padding=False)
        self.Conv2d_2a_3x3 = _Convolution(32, _Layer("", 32, 3), padding=False)
        self.Conv2d_2b_3x3 = _Convolution(32, _Layer("", 64, 3), padding=True)
        self.Conv2d_3b_1x1 = _Convolution(64, _Layer("", 80, 1), padding=False)
        self.Conv2d_4a_3x3 = _Convolution(80, _Layer("", 192, 3), padding=False)
        self.Mixed_5b = _Mixed(192, _FIVES, _AVERAGE, 32)
        self.Mixed_5c = _Mixed(256, _FIVES, _AVERAGE, 64)
        self.Mixed_5d = _Mixed(288, _FIVES, _AVERAGE, 64)
        halving = _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3), stride=2)
        self.Mixed_6a = _Mixed(288, (_chain("branch3x3", (384, 3), stride=2), halving), _HALVE)
        self.Mixed_6b = _Mixed(768, _sevens(128), _AVERAGE, 192)
        self.Mixed_6c = _Mixed(768, _sevens(160), _AVERAGE, 192)
        self.Mixed_6d = _Mixed(768, _sevens(160), _AVERAGE, 192)
        self.Mixed_6e = _Mixed(768, _sevens(192), _AVERAGE, 192)
        halving = _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), stride=2)
        self.Mixed_7a = _Mixed(768, (_chain("branch3x3", (192, 1), (320, 3), stride=2), halving), _HALVE)
        self.Mixed_7b = _Mixed(1280, _FORKS, _AVERAGE, 192)
        self.Mixed_7c = _Mixed(2048, _FORKS, _MAXIMUM, 192)
        self.fc = nn.Linear(FEATURES, CLASSES)

    @property
    def class_weights(self) -> Tensor:
        """Weights of the logits, without bias, as the Inception Score is defined."""
        return self.fc.weight

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 [B, 2048] of images uint8 [B, 3, H, W]."""
        x = (_resized(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x.contiguous(memory_format=torch.channels_last))))
        x = _HALVE(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_HALVE(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        return cast(Tensor, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3)))


class FeatureNetwork:
    """A network of FID features on a ``device``. ``class_weights`` [classes, C] are None if it has none that are known."""

    def __init__(self, network: Callable[[Tensor], Tensor], class_weights: Tensor | None, device: torch.device) -> None:
        self.device = device
        self.class_weights = None if class_weights is None else class_weights.detach().cpu().float()
        self._network = network

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 [B, C], on the host, of images uint8 [B, 3, H, W]. Raises ``CheckpointError``."""
        with FORMATS["float32"].on(self.device):
            features = self._network(images.to(self.device))
        if not isinstance(features, Tensor) or features.numel() % len(images):
            raise CheckpointError("the feature network does not return features [B, C] of images uint8 [B, 3, H, W]")
        return features.reshape(len(images), -1).float().cpu()


def load_feature_network(path: Path, device: torch.device) -> FeatureNetwork:
    """The network of a file: Inception weights (``.pth``, safetensors) or TorchScript, which can execute code.

    Raises ``CheckpointError``.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no Inception weights at {path}, and nothing is downloaded; torch-fidelity's release v0.2.0 has the file "
            "weights-inception-2015-12-05-6726825d.pth"
        )
    if _is_torchscript(path):
        return _load_torchscript(path, device)
    checkpoint = open_checkpoint(path)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not any(part in name for part in _UNUSED)}
    with skip_init():
        network = Inception()
    load_strictly(network, replace(checkpoint, tensors=kept))
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FeatureNetwork(network, network.class_weights, device)


def _is_torchscript(path: Path) -> bool:
    """TorchScript is a zip archive with source code, which a file of tensors does not have."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):  # open_checkpoint tells what is wrong
        return False


def _load_torchscript(path: Path, device: torch.device) -> FeatureNetwork:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for torch.export, which the published file is not of
            network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        # StyleGAN's returns class probabilities unless it is asked for features; its last layer is called output.
        has_option = any(argument.name == "return_features" for argument in network.forward.schema.arguments)
        run = partial(network, return_features=True) if has_option else network
        found = FeatureNetwork(run, network.state_dict().get("output.weight"), device)
        found(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is no TorchScript of features [B, C] of uint8 [B, 3, H, W]: {error}") from None
    return found


def _resized(images: Tensor) -> Tensor:
    """Bilinear resizing of [B, 3, H, W] to 299 x 299 as in TensorFlow 1: pixel x is at position x * W / 299."""
    for _ in range(2):  # columns, then rows as columns
        size = images.shape[-1]
        positions = torch.arange(_SIZE, device=images.device) * (size / _SIZE)
        left = positions.long()
        right = (left + 1).clamp(max=size - 1)
        images = torch.lerp(images[..., left], images[..., right], positions - left).mT
    return images
