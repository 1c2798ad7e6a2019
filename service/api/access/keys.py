"""API keys: their names, roles and rates, and how they are written down.

::

    plain      a-long-random-key                                    every role; for a laptop
    hashed     NAME:ROLE+ROLE:sha256:HEX[:RATE]                     TITOK_API_KEYS, comma-separated
    in a file  [[keys]]  name, roles, sha256, rate                  TITOK_API_KEYS_FILE, TOML

What is kept of a key is its SHA-256. A slow hash protects passwords, which can be guessed; of a key that is 32 random bytes
there is nothing to guess, and a slow hash would only cost every request its time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from service.api.access.roles import ROLES, Role
from service.settings import check_rate

__all__ = ["ApiKey", "KeyRing", "new_key", "parse_keys_file"]

Model = TypeVar("Model", bound=BaseModel)

_PREFIX = "titok_"  # lets scanners of source code recognise a key that was left in it
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_DIGEST = r"^[0-9a-f]{64}$"
# Also a slip in writing one: it must not become a plain key with every role.
_HASHED = re.compile(r":sha256:|:[0-9a-f]{64}", re.IGNORECASE)


class ApiKey(BaseModel):
    """One key. ``sha256`` is the digest of the key in hexadecimal digits; no ``rate``: that of ``TITOK_RATE_LIMIT``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=_NAME)]
    roles: frozenset[Role] = Field(min_length=1)
    sha256: Annotated[str, StringConstraints(to_lower=True, pattern=_DIGEST)] = Field(repr=False)
    rate: str | None = None

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, value: str | None) -> str | None:
        return None if value is None else check_rate(value)

    @classmethod
    def plain(cls, key: str, *, name: str, roles: Iterable[Role] = ("admin",), rate: str | None = None) -> Self:
        """Of a key in clear. Raises ``ValueError``."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return _checked(cls, {"name": name, "roles": list(roles), "sha256": digest, "rate": rate})

    @classmethod
    def from_entry(cls, entry: str) -> Self:
        """Of ``NAME:ROLE+ROLE:sha256:HEX[:RATE]``. Raises ``ValueError``, which does not show the digest."""
        parts = entry.split(":", 4)
        if len(parts) < 4 or parts[2] != "sha256":
            raise ValueError("a hashed key is written NAME:ROLE+ROLE:sha256:HEX, or NAME:ROLE+ROLE:sha256:HEX:RATE")
        name, roles, _, digest, *rate = parts
        return _checked(
            cls, {"name": name, "roles": roles.split("+"), "sha256": digest, "rate": rate[0] if rate else None}
        )

    def entry(self) -> str:
        """The key as an entry of ``TITOK_API_KEYS``."""
        parts = [self.name, "+".join(self._sorted_roles()), "sha256", self.sha256, *([self.rate] if self.rate else [])]
        return ":".join(parts)

    def table(self) -> str:
        """The key as a table of ``TITOK_API_KEYS_FILE``."""
        lines = [
            "[[keys]]",
            f'name = "{self.name}"',
            f"roles = [{', '.join(f'{chr(34)}{role}{chr(34)}' for role in self._sorted_roles())}]",
            f'sha256 = "{self.sha256}"',
            *([f'rate = "{self.rate}"'] if self.rate else []),
        ]
        return "\n".join(lines) + "\n"

    def allows(self, required: frozenset[Role]) -> bool:
        """Whether its roles are enough."""
        return "admin" in self.roles or required <= self.roles

    def _sorted_roles(self) -> list[Role]:
        return [role for role in ROLES if role in self.roles]


@dataclass(frozen=True)
class KeyRing:
    """Keys by which callers are known."""

    keys: Sequence[ApiKey]

    def __post_init__(self) -> None:
        for what, values in (
            ("name", [key.name for key in self.keys]),
            ("sha256", [key.sha256 for key in self.keys]),
        ):
            if len(set(values)) < len(values):
                twice = next(key.name for key, value in zip(self.keys, values, strict=True) if values.count(value) > 1)
                raise ValueError(f"two keys have the same {what}, one of them {twice!r}")

    @classmethod
    def from_entries(cls, entries: Iterable[str]) -> Self:
        """Of the entries of ``TITOK_API_KEYS``; plain ones are named by their place. Raises ``ValueError``."""
        return cls(
            [
                ApiKey.from_entry(entry) if _HASHED.search(entry) else ApiKey.plain(entry, name=f"key-{place}")
                for place, entry in enumerate(entries, start=1)
            ]
        )

    def find(self, given: str) -> ApiKey | None:
        """The key that a caller has sent. All are compared, each in constant time, so that the time tells nothing."""
        digest = hashlib.sha256(given.encode()).hexdigest()
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.sha256)]
        return matches[0] if matches else None


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = []


def parse_keys_file(content: bytes) -> list[ApiKey]:
    """The keys of a file. Raises ``ValueError`` with a line that names the place and shows no digest."""
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not TOML: {error}") from None
    return _checked(_KeysFile, document).keys


def new_key() -> str:
    """A key of 32 random bytes."""
    return _PREFIX + secrets.token_urlsafe(32)


def _checked(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        places = [f"{'.'.join(map(str, place['loc']))}: {place['msg']}" for place in error.errors()]
        raise ValueError("; ".join(places)) from None
