"""Cache keys of codes and latents: everything that decides them is part of the key.

::

    titok:v1:{tokenizer}:{weights}:{preprocessing}:{sha256 of an upload's bytes}
    titok:v1:{tokenizer}:{weights}:{preprocessing}:pixels:{sha256 of the pixels that the tokenizer sees}

The first is known before an image is decoded. The second finds the same pixels in another file format or with other
metadata. ``titok`` is the namespace, ``v1`` the layout of keys and values. If callers must not share entries, each has a
``scope`` in front of the digest: ``...:of-{scope}:{sha256}``. Latents have ``latents:`` there, behind the scope: an entry
holds the encoder's output in float32, of a VAE mean and log-variance, from which every sample and number format is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

LAYOUT = "v1"
LEASE = b":lease"
"""Suffix of the key that claims the computation of a code."""

_CODE = re.compile(rb"([^:]*):([^:]*):([^:]*):(of-[^:]*:)?(?:latents:)?(pixels:)?[0-9a-f]{64}(%s)?" % LEASE)


def namespace_prefix(namespace: str) -> bytes:
    """The prefix of all codes of a namespace."""
    return f"{namespace}:{LAYOUT}:".encode()


@dataclass(frozen=True)
class KeySpace:
    """The keys of one revision of one tokenizer (``weights-preprocessing``, as the tokenizer names it), of its codes or its
    ``latents``.
    """

    namespace: str
    tokenizer: str
    revision: str
    scope: str | None = None
    latents: bool = False
    prefix: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights, _, preprocessing = self.revision.partition("-")
        scope = () if self.scope is None else (f"of-{self.scope}",)
        kind = ("latents",) if self.latents else ()
        parts = (self.namespace, LAYOUT, self.tokenizer, weights, preprocessing, *scope, *kind)
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
        match = _CODE.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if match is None:
            return None
        tokenizer, weights, preprocessing = (part.decode(errors="replace") for part in match.group(1, 2, 3))
        scope, pixels, lease = match.group(4, 5, 6)
        revision = f"{weights}-{preprocessing}" if preprocessing else weights
        return cls(tokenizer, revision, "lease" if lease else "pixels" if pixels else "upload", scope is not None)
