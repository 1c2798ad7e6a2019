"""A metric of generated images beside the same metric of real images."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of generated images, the same of real images, and the ratio of both."""

    generated: float
    real: float
    ratio: float

    @classmethod
    def of(cls, generated: float, real: float) -> Comparison:
        """The pair with its ratio, NaN if ``real`` is not positive (an unbiased estimate can be negative)."""
        return cls(generated=generated, real=real, ratio=generated / real if real > 0 else math.nan)
