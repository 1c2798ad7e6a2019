"""Creation of networks without memory and initial values, to be filled from a checkpoint.

PyTorch's ``meta`` device alone would suffice, but normal initialization on it imports PyTorch's Python decompositions,
which takes as long as the rest of loading a small model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _SkipNormal(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **kwargs or {})


@contextmanager
def skip_init() -> Iterator[None]:
    """Context manager: new modules have parameters on the ``meta`` device; see ``checkpoints.load_strictly``."""
    with torch.device("meta"), _SkipNormal():
        yield
