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

__all__ = ["ProductMode", "Products", "has_tensor_float32"]

ProductMode: TypeAlias = Literal["float32", "tf32", "tf32x3"]


def has_tensor_float32(device: torch.device) -> bool:
    """Whether the device has TF32 arithmetic: NVIDIA's from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


class Products(AbstractContextManager["Products"]):
    """Float32 products on ``device`` are computed as ``mode`` says while this is entered; it may be entered again."""

    def __init__(self, mode: ProductMode, device: torch.device) -> None:
        self._mode = mode
        self._switched = device.type == "cuda"
        self._three_pass = ThreePassLinear() if mode == "tf32x3" else None
        self._before = (False, False)

    def __enter__(self) -> Products:
        if self._switched:
            self._before = _get_tf32()
            _set_tf32(matrices=self._mode != "float32", convolutions=self._mode == "tf32")
        if self._three_pass is not None:
            self._three_pass.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._three_pass is not None:
            self._three_pass.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if self._switched:
            matrices, convolutions = self._before
            _set_tf32(matrices=matrices, convolutions=convolutions)


def _get_tf32() -> tuple[bool, bool]:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # PyTorch 2.9 and later warn of the older switches
        return (
            torch.backends.cuda.matmul.fp32_precision == "tf32",
            torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
        )
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(*, matrices: bool, convolutions: bool) -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if matrices else "ieee"
        torch.backends.cudnn.conv.fp32_precision = "tf32" if convolutions else "ieee"  # type: ignore[attr-defined]
    else:
        torch.backends.cuda.matmul.allow_tf32 = matrices
        torch.backends.cudnn.allow_tf32 = convolutions


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
