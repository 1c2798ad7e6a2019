"""Rendered images, by what decides their bytes: kept so that a popular address costs the device nothing."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["PictureCache"]


class PictureCache:
    """The most recently used files, up to ``capacity`` bytes together. Used from one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    @property
    def num_bytes(self) -> int:
        """What the files hold together."""
        return self._size

    def get(self, key: str) -> bytes | None:
        """The file, if it is still there."""
        file = self._files.get(key)
        if file is not None:
            self._files.move_to_end(key)
        return file

    def put(self, key: str, file: bytes) -> None:
        """Keeps a file, unless it is larger than all room."""
        if len(file) > self._capacity:
            return
        if key in self._files:
            self._size -= len(self._files.pop(key))
        self._files[key] = file
        self._size += len(file)
        while self._size > self._capacity:
            _, oldest = self._files.popitem(last=False)
            self._size -= len(oldest)
