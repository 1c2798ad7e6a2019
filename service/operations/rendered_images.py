"""Cache of rendered image files, so that repeated requests for an address need no device."""

from __future__ import annotations

from cachetools import LRUCache


class RenderedImageCache(LRUCache[str, bytes]):
    """The most recently used files, up to ``maxsize`` bytes together. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=len)

    def put(self, key: str, file: bytes) -> None:
        """Keeps a file, unless it is larger than the whole cache."""
        if len(file) <= self.maxsize:
            self[key] = file
