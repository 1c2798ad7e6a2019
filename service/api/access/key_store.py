"""The API keys in force: those of the environment, and those of a file that is read again when it changes."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from service.api.access.keys import KeySet, parse_keys_file
from service.settings import Settings

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_READS = 1.0


def load_keys(settings: Settings) -> KeySet:
    """Reads the keys of the environment and of the file. Raises ``ValueError`` or ``OSError``."""
    return _combine(settings, b"" if settings.api_keys_file is None else _read_file(settings.api_keys_file))


def _read_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
        raise OSError(f"{path} is not a regular file")
    return path.read_bytes()


def _combine(settings: Settings, content: bytes) -> KeySet:
    environment = KeySet.from_entries(key.get_secret_value() for key in settings.api_keys)
    return KeySet([*environment.keys, *parse_keys_file(content)])


class ReloadingKeyStore:
    """Checks the file for changes when keys are needed, once a second at most, without a background task. If a new version
    cannot be read, or has no table ``keys`` as after a cut, the log says so and the previous version stays in force.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._path = settings.api_keys_file
        self._clock = clock
        self._content: bytes | None = None
        self._next_read = float("-inf")
        self._fault: str | None = None
        self._keys = _combine(settings, b"") if self._path is None else None

    @property
    def are_required(self) -> bool:
        """Whether a caller needs a key: always with a file, even an empty one."""
        return bool(self._settings.api_keys) or self._path is not None

    @property
    def state(self) -> Literal["ok", "stale", "unreadable"]:
        """``stale``: the file cannot be used, and the keys read before are in force; ``unreadable``: there are none."""
        if self.current() is None:
            return "unreadable"
        return "ok" if self._fault is None else "stale"

    def reload(self) -> None:
        """Reads the file now."""
        self._next_read = float("-inf")
        self.current()

    def current(self) -> KeySet | None:
        """The keys in force; None while the file has never been readable, so that nobody can be authorized."""
        if self._path is not None and self._clock() >= self._next_read:
            self._next_read = self._clock() + _SECONDS_BETWEEN_READS
            self._read(self._path)
        return self._keys

    def _read(self, path: Path) -> None:
        try:
            content = _read_file(path)
            keys = self._keys if content == self._content else self._parse(content)
        except (OSError, ValueError) as error:
            if str(error) != self._fault:
                self._fault = str(error)
                effect = "all requests are refused" if self._keys is None else "the keys read before stay in force"
                log.error("API keys: %s cannot be used, %s: %s", path, effect, error)  # noqa: TRY400  no traceback needed
            return
        if self._fault is not None or (self._content is not None and content != self._content):
            log.info("API keys: %s was read again, %d keys are in force", path, len(keys.keys) if keys else 0)
        self._content, self._fault, self._keys = content, None, keys

    def _parse(self, content: bytes) -> KeySet:
        keys = _combine(self._settings, content)
        if self._content and "keys" not in tomllib.loads(content.decode()):
            raise ValueError("it has no keys any more; to revoke all of them, write: keys = []")
        return keys
