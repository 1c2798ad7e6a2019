"""Names of codes in a cache: everything that decides the ids is part of them.

::

    titok:v1:{tokenizer}:{weights}:{preprocessing}:{sha256 of an upload's bytes}
    titok:v1:{tokenizer}:{weights}:{preprocessing}:pixels:{sha256 of the pixels that the tokenizer sees}

The first is known before an image is decoded. The second finds the same picture in another container or with other
metadata. ``titok`` is the namespace, ``v1`` the layout of keys and values. Where callers are not to share
what is known, each has a ``scope``, which comes before the digest: ``...:of-{scope}:{sha256}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LAYOUT", "KeySpace"]

LAYOUT = "v1"


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
