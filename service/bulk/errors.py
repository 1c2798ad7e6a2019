"""What can go wrong with a data set as a whole, and with one image of it.

::

    ValueError ── BulkError       the run cannot begin or go on; the message says what to do
               └─ BrokenImage     one image that is recorded and left out
"""

from __future__ import annotations

__all__ = ["BrokenImage", "BulkError"]


class BulkError(ValueError):
    """The source, the destination or the options do not allow a run; the message says what to do."""


class BrokenImage(ValueError):
    """An image that cannot be used; the message says why."""
