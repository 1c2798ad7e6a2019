"""Roles that each route requires of a key. A route that is not listed here cannot be served."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Role = Literal["encode", "decode", "generate", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)
"""Every role. ``admin`` has all the others."""

_ENCODE, _DECODE, _GENERATE = (frozenset[Role]({role}) for role in ROLES[:3])
_ANY_KEY = frozenset[Role]()

REQUIRED_ROLES: Mapping[str, frozenset[Role]] = MappingProxyType(
    {
        "/v1/encode": _ENCODE,
        # A look-up returns what encode would.
        "/v1/codes:lookup": _ENCODE,
        "/v1/codes/{sha256}": _ENCODE,
        "/v1/decode": _DECODE,
        "/v1/images/{tokenizer}/{code}.{extension}": _DECODE,
        "/v1/mix": _DECODE,
        "/v1/reconstruct": _ENCODE | _DECODE,
        "/v1/generate": _GENERATE,
        "/v1/images/generations": _GENERATE,
        "/v1/models": _ANY_KEY,
        "/v1/models/{model}": _ANY_KEY,
        "/v1/models/{model}/classes": _ANY_KEY,
    }
)
"""Path of a route -> the roles that a key needs, all of them; empty: any key."""

OPEN_PATHS: frozenset[str] = frozenset(
    {
        "/",
        "/playground/{path:path}",
        "/pages/{path:path}",
        "/docs",
        "/openapi.json",
        "/static-offline-docs",
        "/livez",
        "/readyz",
        "/healthz",
    }
)
"""Paths that need no key: pages and documents that are the same for everybody, and health."""
