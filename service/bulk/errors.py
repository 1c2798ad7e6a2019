"""Errors of a tokenization run, and of single images of a dataset.

::

    ValueError ── BulkError       the run cannot start or continue; the message says what to do
               └─ BrokenImage     one image, which is recorded and left out
"""


class BulkError(ValueError):
    """The run cannot start or continue with this source, destination or options; the message says what to do."""


class BrokenImage(ValueError):
    """An image cannot be used; the message says why."""
