"""Base class of domain errors: failures described without HTTP.

::

    ServiceError
    ├── imaging.errors.ImageError           an image cannot be decoded within the limits
    ├── inference.model_info.NoTokenIds     token ids of a VAE, which has none
    └── operations.errors.OperationError    a request that the models served cannot answer

The engine imports nothing of the service, so ``engine.errors`` has a tree of its own. ``api/error_table.py`` maps all of
them to problem documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """One offending value of an input.

    ``pointer`` is a JSON pointer into the body (``/tokens/0/3``), or names another part of the request:
    ``query/steps``, ``header/Accept``, ``path/code``, ``body`` for a body that is not JSON, ``body/2`` for the third
    file of a form.
    """

    pointer: str
    detail: str
    value: Any = None
    expected: str | None = None

    def document(self) -> dict[str, Any]:
        """The JSON form; absent members are left out."""
        members = {"pointer": self.pointer, "detail": self.detail, "value": self.value, "expected": self.expected}
        return {name: member for name, member in members.items() if member is not None}


class ServiceError(Exception):
    """A failure with a message for the caller, and the offending values. Raise a subclass.

    ``extensions`` are further members of the problem document, such as ``near_matches`` of an unknown class name.
    """

    def __init__(self, message: str, *, errors: Sequence[ErrorDetail] = (), **extensions: Any) -> None:
        super().__init__(message)
        self.errors = tuple(errors)
        self.extensions = extensions
