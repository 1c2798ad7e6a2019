"""Keys of entries: unique in a source, and relative paths that every output format can store.

A key is made from its entry and those before it in the same file, so it does not depend on where reading began.
"""

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from service.bulk.entries import Entry, Label
from service.bulk.errors import BrokenImage

LONGEST_PART, LONGEST_KEY = 240, 1000  # bytes; names of files have at most 255
_DIGEST_DIGITS = 16
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FILTER_BITS = 1 << 28
_FOUR_NUMBERS = struct.Struct("<4I")


@dataclass(frozen=True)
class FileKeys:
    """How the keys of one file of a source are made unique among its files.

    ``name`` is unique among the files. If there are several, a key becomes ``name/key``, unless it starts with the name
    already and all names have the same length: then no key of another file can equal it.
    """

    name: str
    is_prefixed: bool = False
    may_start_with_name: bool = False

    def of(self, key: str) -> str:
        """The key in the source of a key in the file."""
        if not self.is_prefixed or (self.may_start_with_name and key.startswith(self.name)):
            return key
        return f"{self.name}/{key}"


def keys_of_files(names: Sequence[str], suffixes: tuple[str, ...]) -> list[FileKeys]:
    """The rules for files with these relative names. A file is called by its name without its suffix, or by its path if
    names are equal.
    """
    plain = [next((name[: -len(end)] for end in suffixes if name.lower().endswith(end)), name) for name in names]
    choices = (
        [PurePosixPath(name).name for name in plain],
        [name.replace("/", "-") for name in plain],
        [name.replace("%", "%25").replace("/", "%2F") for name in names],
    )
    chosen = [_shortened(_text(name), LONGEST_PART) for name in next(one for one in choices if _are_unique(one))]
    equally_long = len({len(name) for name in chosen}) == 1
    return [FileKeys(name, len(names) > 1, equally_long) for name in chosen]


def _are_unique(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


class UniqueKeys:
    """Makes the keys of one file, whose entries it must be given in order from the first on.

    A key that occurred before gets its entry's number. Earlier keys are kept in a Bloom filter of 32 MiB: with a million
    keys in one file, the chance that one of them gets a number without need is one in a hundred.
    """

    def __init__(self, file: FileKeys) -> None:
        self._file = file
        self._seen = bytearray(_FILTER_BITS // 8)

    def __call__(self, key: str | None, number: int) -> str:
        """The key of entry ``number``, which has ``key`` in the file. Raises ``BrokenImage`` for a path with ``..``."""
        text = _relative(key or "") or f"{self._file.name}-{number:08d}"
        text = _shortened(self._file.of(text), LONGEST_KEY)
        while self._has_seen(text):
            text = f"{text}~{number}"
        return text

    def entry(self, key: str | None, number: int, label: Label, read: Callable[[], bytes]) -> Entry:
        """An entry with its key; it is broken if it can have none."""
        try:
            return Entry(self(key, number), label, read)
        except BrokenImage as error:
            return Entry(self(None, number), None, partial(refuse, str(error)))

    def _has_seen(self, text: str) -> bool:
        """Whether the filter has a text, which is added."""
        seen, is_new = self._seen, False
        for place in _FOUR_NUMBERS.unpack(hashlib.blake2b(text.encode(), digest_size=16).digest()):
            byte, bit = place % _FILTER_BITS >> 3, 1 << (place & 7)
            if not seen[byte] & bit:
                is_new = True
                seen[byte] |= bit
        return not is_new


def refuse(reason: str) -> bytes:
    """Raises ``BrokenImage``."""
    raise BrokenImage(reason)


def _relative(key: str) -> str:
    """A key as a relative path without empty parts and ``.``; long parts end in a digest."""
    parts = [_shortened(part, LONGEST_PART) for part in _text(key).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BrokenImage(f"its key has the part '..': {key[:100]!r}")
    return "/".join(parts)


def _text(key: str) -> str:
    """A key in valid UTF-8 without control characters, which are written as escapes like other bytes of file names."""
    if key.isascii() and key.isprintable():
        return key
    text = key.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _shortened(text: str, limit: int) -> str:
    if 4 * len(text) <= limit or len(data := text.encode()) <= limit:
        return text
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]
    return f"{data[: limit - _DIGEST_DIGITS - 1].decode(errors='ignore')}~{digest}"
