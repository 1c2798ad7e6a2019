"""The binary format of a value in Redis.

::

    1 byte   layout, 1
    4 bytes  BLAKE2b of the key and all that follows
    1..5     width of the original, LEB128
    1..5     height
    rest     the packed code

57 bytes for a photograph and 48 bytes of code. The digest binds a value to its key: a value that was truncated, altered,
written under another key, or read by the wrong caller is rejected, so it is never taken for another image's code.
"""

from __future__ import annotations

from hashlib import blake2b

from service.cache.protocol import CachedCode

_LAYOUT = b"\x01"
_DIGEST_BYTES = 4
_MAX_SIDE = 2**32


def pack_value(key: bytes, entry: CachedCode) -> bytes:
    """The value to store under ``key``."""
    width, height = entry.original_size
    body = _leb128(width) + _leb128(height) + entry.code
    return _LAYOUT + _digest(key, body) + body


def unpack_value(key: bytes, value: object) -> CachedCode | None:
    """The entry that ``pack_value`` packed for this key; None for anything else."""
    if not isinstance(value, bytes) or value[:1] != _LAYOUT:
        return None
    body = value[1 + _DIGEST_BYTES :]
    if value[1 : 1 + _DIGEST_BYTES] != _digest(key, body):
        return None
    width, rest = _read_leb128(body)
    height, code = _read_leb128(rest)
    return CachedCode(code, (width, height)) if 0 < width < _MAX_SIDE and 0 < height < _MAX_SIDE and code else None


def _digest(key: bytes, body: bytes) -> bytes:
    return blake2b(key + body, digest_size=_DIGEST_BYTES).digest()


def _leb128(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _read_leb128(data: bytes) -> tuple[int, bytes]:
    """The number at the start of ``data``, and the rest; 0 and nothing if there is none."""
    number = 0
    for position, group in enumerate(data[:5]):
        number |= (group & 0x7F) << (7 * position)
        if group < 0x80:
            return number, data[position + 1 :]
    return 0, b""
