"""Networks whose parameters wait for a checkpoint: shapes and dtypes, without memory and without initial values.

PyTorch's ``meta`` device alone would do, were it not that drawing normal values there goes through PyTorch's Python
decompositions, whose import takes as long as all else that a small model's loading needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["skip_init"]


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **kwargs or {})


@contextmanager
def skip_init() -> Iterator[None]:
    """Modules made in this context have their parameters on the ``meta`` device; see ``checkpoints.load_strictly``."""
    with torch.device("meta"), _NothingDrawn():
        yield
