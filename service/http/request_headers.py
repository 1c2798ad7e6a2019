"""Headers of a request by their names, for what every request asks for.

Starlette's mapping makes an object, and an exception for each header that is not there: together a tenth of what an answer
from the cache costs.
"""

from __future__ import annotations

from starlette.types import Scope

__all__ = ["header_of"]

_BY_NAME = "titok.headers"


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first header of this name (in lower case, as servers give them), or None."""
    by_name: dict[bytes, bytes] | None = scope.get(_BY_NAME)
    if by_name is None:
        # Backwards, so that of equal names the first is what stays.
        by_name = scope[_BY_NAME] = dict(reversed(scope["headers"]))
    value = by_name.get(name)
    return None if value is None else value.decode("latin-1")
