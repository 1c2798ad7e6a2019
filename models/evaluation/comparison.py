"""A figure of generated images beside the same figure of photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Comparison"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure of generated images, the same of real photographs, and the first divided by the second."""

    generated: float
    real: float
    ratio: float

    @classmethod
    def of(cls, generated: float, real: float) -> Comparison:
        """The pair with its ratio; beside nothing, or less (an unbiased estimate may be), it is not a number."""
        return cls(generated=generated, real=real, ratio=generated / real if real > 0 else math.nan)
