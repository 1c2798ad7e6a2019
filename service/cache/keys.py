"""Cache keys of codes: everything that decides the token ids is part of the key.

::

    titok:v1:{tokenizer}:{weights}:{preprocessing}:{sha256 of an upload's bytes}
    titok:v1:{tokenizer}:{weights}:{preprocessing}:pixels:{sha256 of the pixels that the tokenizer sees}

The first is known before an image is decoded. The second finds the same pixels in another file format or with other
metadata. ``titok`` is the namespace, ``v1`` the layout of keys and values. If callers must not share entries, each has a
``scope`` in front of the digest: ``...:of-{scope}:{sha256}``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["LAYOUT", "LEASE", "KeyParts", "KeySpace", "namespace_prefix"]

LAYOUT = "v1"
LEASE = b":lease"
"""Suffix of the key that claims the computation of a code."""

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def namespace_prefix(namespace: str) -> bytes:
    """The prefix of all codes of a namespace."""
    return f"{namespace}:{LAYOUT}:".encode()


@dataclass(frozen=True)
class KeySpace:
    """The keys of one revision of one tokenizer (``weights-preprocessing``, as the tokenizer names it)."""

    namespace: str
    tokenizer: str
    revision: str
    scope: str | None = None
    prefix: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights, _, preprocessing = self.revision.partition("-")
        scope = () if self.scope is None else (f"of-{self.scope}",)
        parts = (self.namespace, LAYOUT, self.tokenizer, weights, preprocessing, *scope)
        object.__setattr__(self, "prefix", (":".join(parts) + ":").encode())

    def upload(self, digest: bytes) -> bytes:
        """The key of an upload, by the SHA-256 of its bytes."""
        return self.prefix + digest.hex().encode()

    def pixels(self, digest: bytes) -> bytes:
        """The key of pixels uint8 [S, S, 3], by their SHA-256."""
        return self.prefix + b"pixels:" + digest.hex().encode()


@dataclass(frozen=True)
class KeyParts:
    """A parsed key."""

    tokenizer: str
    revision: str
    kind: Literal["upload", "pixels", "lease"]
    is_scoped: bool

    @classmethod
    def of(cls, key: bytes, namespace: str) -> KeyParts | None:
        """Parses a key made by a ``KeySpace`` of this namespace; None for any other."""
        prefix = namespace_prefix(namespace)
        if not key.startswith(prefix):
            return None
        is_lease = key.endswith(LEASE)
        parts = key[len(prefix) :].removesuffix(LEASE).decode(errors="replace").split(":")
        if len(parts) < 4:
            return None
        tokenizer, weights, preprocessing, *rest = parts
        is_scoped = rest[0].startswith("of-")
        rest = rest[is_scoped:]
        if not rest or not _DIGEST.fullmatch(rest[-1]) or rest[:-1] not in ([], ["pixels"]):
            return None
        revision = f"{weights}-{preprocessing}" if preprocessing else weights
        kind: Literal["upload", "pixels", "lease"] = "lease" if is_lease else "pixels" if rest[:-1] else "upload"
        return cls(tokenizer, revision, kind, is_scoped)
