"""The modes that make CPU tensors look and behave as if they were on a device.

::

    FunctionMode   what Python sees: devices of tensors, factories with ``device``, ``to``, ``copy_``, ``pin_memory``
    DispatchMode   each operator: on the host or on the current stream; order of accesses; recording of graphs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from tests.fake_cuda.device import FakeCuda

CUDA = torch.device("cuda", 0)
_FACTORIES = {
    getattr(torch, name)
    for name in (
        "empty",
        "zeros",
        "ones",
        "full",
        "arange",
        "linspace",
        "tensor",
        "as_tensor",
        "rand",
        "randn",
        "randint",
    )
} | {torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like}


class DispatchMode(TorchDispatchMode):
    """Runs every operator on the host or on the fake device."""

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self._fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._fake.run(func, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    """Answers what Python asks of tensors, and moves them."""

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self._fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fake, kwargs = self._fake, dict(kwargs or {})
        descriptor = getattr(func, "__self__", None)
        if descriptor is Tensor.device:
            return CUDA if fake.on_device(args[0]) else func(*args)
        if descriptor is Tensor.is_cuda:
            return fake.on_device(args[0])
        if func in _FACTORIES:
            return self._created(func, args, kwargs)
        if func is Tensor.pin_memory:
            return fake.pinned(args[0].clone())
        if func is Tensor.is_pinned:
            return fake.is_pinned(args[0])
        if func is Tensor.numpy and fake.on_device(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.cpu:
            return self._moved(args[0], torch.device("cpu"), False)
        if func is Tensor.cuda:
            return self._moved(args[0], CUDA, False)
        if func is Tensor.tolist and fake.on_device(args[0]):
            return self._moved(args[0], torch.device("cpu"), False).tolist()
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.copy_ and fake.on_device(args[0]) != fake.on_device(args[1]) and args[1].dim():
            target, source, non_blocking = (*args, *kwargs.values(), False)[:3]
            fake.transfer(target, source, non_blocking=non_blocking)
            return target
        return func(*args, **kwargs)

    def _created(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device, pin = kwargs.get("device"), kwargs.pop("pin_memory", False)
        if device is not None and torch.device(device).type == "cuda":
            return self._fake.create(func, args, kwargs)
        made = func(*args, **kwargs)
        return self._fake.pinned(made) if pin else made

    def _moved(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        to_device = device.type == "cuda"
        if self._fake.on_device(tensor) == to_device:
            return tensor
        return self._fake.move(tensor, to_device=to_device, non_blocking=non_blocking)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (CUDA if self._fake.on_device(args[0]) else torch.device("cpu"), args[0].dtype, *args[1:])
        kwargs.pop("copy", None)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None:
            tensor = self._moved(tensor, device, non_blocking)
        options = {"dtype": dtype or tensor.dtype, **({} if layout is None else {"memory_format": layout})}
        return Tensor.to(tensor, **options)
