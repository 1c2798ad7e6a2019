"""API keys: names, roles, rates, and the formats they are stored in.

::

    plain      a-long-random-key                                    every role; for a laptop
    hashed     NAME:ROLE+ROLE:sha256:HEX[:RATE]                     TITOK_API_KEYS, comma-separated
    in a file  [[keys]]  name, roles, sha256, rate                  TITOK_API_KEYS_FILE, TOML

Only the SHA-256 of a key is stored. A slow hash protects passwords, which can be guessed; 32 random bytes cannot, so a slow
hash would only slow down every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.api.access.roles import ROLES, Role
from service.settings import check_rate

Model = TypeVar("Model", bound=BaseModel)

_PREFIX = "titok_"  # so that secret scanners find keys in source code
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_DIGEST = r"^[0-9a-f]{64}$"
# Matches malformed hashed entries too: a typo must not make one a plain key with every role.
_HASHED = re.compile(r":sha256:|:[0-9a-f]{64}", re.IGNORECASE)


class ApiKey(BaseModel):
    """One key. ``sha256`` is its digest in hexadecimal digits; ``rate`` None: that of ``TITOK_RATE_LIMIT``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=_NAME)]
    roles: frozenset[Role] = Field(min_length=1)
    sha256: Annotated[str, StringConstraints(to_lower=True, pattern=_DIGEST)] = Field(repr=False)
    rate: Annotated[str, AfterValidator(check_rate)] | None = None

    @classmethod
    def plain(cls, key: str, *, name: str, roles: Iterable[Role] = ("admin",), rate: str | None = None) -> Self:
        """From a key in clear text. Raises ``ValueError``."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return _checked(cls, {"name": name, "roles": list(roles), "sha256": digest, "rate": rate})

    @classmethod
    def from_entry(cls, entry: str) -> Self:
        """From ``NAME:ROLE+ROLE:sha256:HEX[:RATE]``. Raises ``ValueError``, whose message does not contain the digest."""
        parts = entry.split(":", 4)
        if len(parts) < 4 or parts[2] != "sha256":
            raise ValueError("a hashed key has the form NAME:ROLE+ROLE:sha256:HEX, or NAME:ROLE+ROLE:sha256:HEX:RATE")
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
        roles = ", ".join(f'"{role}"' for role in self._sorted_roles())
        rate = f'rate = "{self.rate}"\n' if self.rate else ""
        return f'[[keys]]\nname = "{self.name}"\nroles = [{roles}]\nsha256 = "{self.sha256}"\n{rate}'

    def allows(self, required: frozenset[Role]) -> bool:
        """Whether the key has all required roles."""
        return "admin" in self.roles or required <= self.roles

    def _sorted_roles(self) -> list[Role]:
        return [role for role in ROLES if role in self.roles]


@dataclass(frozen=True)
class KeySet:
    """Keys with distinct names and digests."""

    keys: Sequence[ApiKey]

    def __post_init__(self) -> None:
        for field in ("name", "sha256"):
            counts = Counter(getattr(key, field) for key in self.keys)
            for key in self.keys:
                if counts[getattr(key, field)] > 1:
                    raise ValueError(f"two keys have the same {field}, one of them {key.name!r}")

    @classmethod
    def from_entries(cls, entries: Iterable[str]) -> Self:
        """From the entries of ``TITOK_API_KEYS``; plain keys are named by their position. Raises ``ValueError``."""
        return cls(
            [
                ApiKey.from_entry(entry) if _HASHED.search(entry) else ApiKey.plain(entry, name=f"key-{place}")
                for place, entry in enumerate(entries, start=1)
            ]
        )

    def find(self, given: str) -> ApiKey | None:
        """The key that equals ``given``. Compares all in constant time, so that timing reveals nothing."""
        digest = hashlib.sha256(given.encode()).hexdigest()
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.sha256)]
        return matches[0] if matches else None


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = []


def parse_keys_file(content: bytes) -> list[ApiKey]:
    """The keys of a file. Raises ``ValueError`` with one line that names the place and does not contain a digest."""
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not TOML: {error}") from None
    return _checked(_KeysFile, document).keys


def new_key() -> str:
    """A new key of 32 random bytes."""
    return _PREFIX + secrets.token_urlsafe(32)


def _checked(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        places = [f"{'.'.join(map(str, place['loc']))}: {place['msg']}" for place in error.errors()]
        raise ValueError("; ".join(places)) from None
