"""Memory of the test processes."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["release_memory"]


def release_memory() -> None:
    """The C library keeps freed arrays of up to 32 MB each: gigabytes after a few networks."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
