"""Memory of the test processes."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["trim_heap"]


def trim_heap() -> None:
    """The C library keeps freed arrays of up to 32 MB each: gigabytes after a few networks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
