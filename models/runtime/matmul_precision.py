"""How a CUDA device multiplies float32 matrices: exactly, or with its tensor cores.

::

    float32   23 bits of mantissa                                                  1 pass, no tensor cores
    tf32      10 bits of both factors, sums in float32                             1 pass
    tf32x3    x = high + low of 10 bits each: high W' + low W + high W, float32    3 passes, linear layers only

The sum of three TF32 products has an error near float32's ("3xTF32"; Ootomo and Yokota, arXiv 2203.03341). Convolutions
and attention stay float32 there.

PyTorch's switches are the process's, and convolutions use TF32 unless told otherwise: whoever computes says what it wants,
for as long as it computes. One thread owns the networks of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["MatmulMode", "MatmulPrecision", "has_tf32"]

MatmulMode: TypeAlias = Literal["float32", "tf32", "tf32x3"]


def has_tf32(device: torch.device) -> bool:
    """Whether the device has TF32 arithmetic: NVIDIA's from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class MatmulPrecision(AbstractContextManager["MatmulPrecision"]):
    """Float32 products on ``device`` are computed as ``mode`` says while this is entered; it may be entered again."""

    def __init__(self, mode: MatmulMode, device: torch.device) -> None:
        self._switches = _SWITCHES if device.type == "cuda" else None
        self._matrices, self._convolutions = mode != "float32", mode == "tf32"
        self._three_pass = ThreePassLinear() if mode == "tf32x3" else None
        self._before: tuple[Any, Any] | None = None

    def __enter__(self) -> MatmulPrecision:
        if self._switches is not None:
            self._before = self._switches.get()
            self._switches.set(self._switches.values(matrices=self._matrices, convolutions=self._convolutions))
        if self._three_pass is not None:
            self._three_pass.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._three_pass is not None:
            self._three_pass.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if self._switches is not None and self._before is not None:
            self._switches.set(self._before)


class _Switches:
    """PyTorch's, of matrix products and of convolutions: names of formats from 2.9 on, which warns of the older ones."""

    def __init__(self) -> None:
        self._by_name = hasattr(torch.backends.cuda.matmul, "fp32_precision")

    def values(self, *, matrices: bool, convolutions: bool) -> tuple[Any, Any]:
        """What allows TF32 or forbids it."""
        if not self._by_name:
            return matrices, convolutions
        return "tf32" if matrices else "ieee", "tf32" if convolutions else "ieee"

    def get(self) -> tuple[Any, Any]:
        if self._by_name:
            return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def set(self, values: tuple[Any, Any]) -> None:
        if self._by_name:
            torch.backends.cuda.matmul.fp32_precision = values[0]
            torch.backends.cudnn.conv.fp32_precision = values[1]  # type: ignore[attr-defined]
        else:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = values


_SWITCHES = _Switches()


class ThreePassLinear(TorchFunctionMode):
    """Linear layers on float32 tensors as three products of TF32 factors.

    The parts of a weight are kept: its values must not change while this lives.
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
    """Float32 -> what TF32 keeps of it (10 bits of mantissa, rounded), and the rest, which is exact in float32."""
    high = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, x - high
