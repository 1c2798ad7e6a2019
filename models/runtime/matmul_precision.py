"""Precision of float32 matrix products on a CUDA device: IEEE float32, TF32, or three TF32 passes.

::

    float32   23 bits of mantissa                                                  1 pass, no tensor cores
    tf32      10 bits of both factors, sums in float32                             1 pass
    tf32x3    x = high + low of 10 bits each: high W' + low W + high W, float32    3 passes, linear layers only

The sum of three TF32 products has an error near float32's ("3xTF32"; Ootomo and Yokota, arXiv 2203.03341). Convolutions
and attention stay float32 in this mode.

PyTorch's switches are process-wide, and convolutions use TF32 by default, so every computation sets them. Only one thread
of a process may run networks on CUDA devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MatmulMode: TypeAlias = Literal["float32", "tf32", "tf32x3"]

# Matrix products, convolutions.
_SWITCHES: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
_VALUES = {"float32": ("ieee", "ieee"), "tf32": ("tf32", "tf32"), "tf32x3": ("tf32", "ieee")}


def has_tf32(device: torch.device) -> bool:
    """Whether the device supports TF32: NVIDIA devices of compute capability 8.0 or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fp32_precision() -> tuple[str, str]:
    """PyTorch's current precision of float32 matrix products and convolutions, ``ieee`` or ``tf32``."""
    matrices, convolutions = (switch.fp32_precision for switch in _SWITCHES)
    return matrices, convolutions


def set_fp32_precision(values: tuple[str, str]) -> None:
    """Sets what :func:`fp32_precision` returns."""
    for switch, value in zip(_SWITCHES, values, strict=True):
        switch.fp32_precision = value


class MatmulPrecision:
    """Reusable context manager: float32 products on ``device`` are computed in ``mode``."""

    def __init__(self, mode: MatmulMode, device: torch.device) -> None:
        self._values = _VALUES[mode] if device.type == "cuda" else None
        self._three_pass = ThreePassLinear() if mode == "tf32x3" else None
        self._before = ("", "")

    def __enter__(self) -> None:
        if self._values is not None:
            self._before = fp32_precision()
            set_fp32_precision(self._values)
        if self._three_pass is not None:
            self._three_pass.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        if self._three_pass is not None:
            self._three_pass.__exit__(*error)  # type: ignore[no-untyped-call]
        if self._values is not None:
            set_fp32_precision(self._before)


class ThreePassLinear(TorchFunctionMode):
    """Computes linear layers on float32 tensors as three products of TF32 factors.

    The parts of each weight are cached: weights must not change while this object lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs and args[0].dtype is torch.float32:
            return self._linear(*args)
        return func(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] by [O, I] -> [..., O]."""
        key = (weight.data_ptr(), weight.shape)
        if key not in self._parts:
            self._parts[key] = _split(weight)
        weight_high, weight_low = self._parts[key]
        high, low = _split(x.reshape(-1, x.shape[-1]))
        # The small terms first, so that the large one is rounded once.
        out = F.linear(low, weight_high) if bias is None else torch.addmm(bias, low, weight_high.T)
        out.addmm_(high, weight_low.T).addmm_(high, weight_high.T)
        return out.view(*x.shape[:-1], -1)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 -> its TF32 part (10 bits of mantissa, rounded), and the remainder, which is exact in float32."""
    high = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, x - high
