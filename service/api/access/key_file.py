"""The keys in force: those of the environment, and those of a file that is read again when it has changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.api.access.keys import KeyRing, parse_keys_file
from service.settings import Settings

__all__ = ["Keys", "load_keys"]

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_READS = 1.0


def load_keys(settings: Settings) -> KeyRing:
    """The keys of the environment and of the file, now. Raises ``ValueError`` or ``OSError``."""
    content = settings.api_keys_file.read_bytes() if settings.api_keys_file is not None else b""
    return _combine(settings, content)


def _combine(settings: Settings, content: bytes) -> KeyRing:
    environment = KeyRing.from_entries(key.get_secret_value() for key in settings.api_keys)
    return KeyRing([*environment.keys, *parse_keys_file(content)])


class Keys:
    """One process's view of them. No task and no signal keeps it fresh: whoever asks for the keys has the file looked at,
    once a second at most. A version that cannot be read is told in the log, and the one before it stays in force.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._path: Path | None = settings.api_keys_file
        self._clock = clock
        self._content: bytes | None = None
        self._next_read = float("-inf")
        self._fault: str | None = None
        self._ring = KeyRing([]) if self._path is None and not settings.api_keys else None
        if self._path is None and settings.api_keys:
            self._ring = _combine(settings, b"")

    @property
    def are_asked_for(self) -> bool:
        """Whether a caller needs a key. With a file, even an empty one, it does."""
        return bool(self._settings.api_keys) or self._path is not None

    def current(self) -> KeyRing | None:
        """Those in force; None while the file has never been readable: then nobody can be let in."""
        if self._path is not None and self._clock() >= self._next_read:
            self._next_read = self._clock() + _SECONDS_BETWEEN_READS
            self._read(self._path)
        return self._ring

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            if content == self._content:
                return
            ring = _combine(self._settings, content)
        except (OSError, ValueError) as error:
            if str(error) != self._fault:
                self._fault = str(error)
                stays = "nobody is let in" if self._ring is None else "the keys read before stay in force"
                log.error("API keys: %s cannot be used, %s: %s", path, stays, error)  # noqa: TRY400  its reason is enough
            return
        if self._content is not None or self._fault is not None:
            log.info("API keys: %s has changed, %d keys are in force", path, len(ring.keys))
        self._content, self._fault, self._ring = content, None, ring
