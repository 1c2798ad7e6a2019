"""Redis URLs: which forms and options are valid, and the arguments of redis-py that they stand for.

::

    redis://user:password@host:6379/0                      rediss:// with TLS
    unix://user:password@/path/to/socket?db=0
    redis+sentinel://user:password@host:26379,host:26379/service/0    rediss+sentinel:// with TLS to servers and Sentinels
    redis+cluster://user:password@host:6379,host:6379      rediss+cluster:// with TLS

Error messages contain no part of a URL except names of options: any other part may belong to a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from ssl import TLSVersion
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, unquote

from pydantic import (
    BaseModel,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

Kind = Literal["server", "sentinel", "cluster"]
_Seconds = Annotated[float, Field(gt=0, le=3600)]

_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[\w.-]+))(?::(?P<port>\d{1,5}))?")
_OPTION_NAME = re.compile(r"[a-z_]{1,40}")
_SENTINEL_PREFIX = "sentinel_"
_ENCODING = "in a user name or password write # as %23, / as %2F, : as %3A, ? as %3F and @ as %40"


class _ConnectionOptions(BaseModel):
    """Options of a connection to a server or to a Sentinel."""

    model_config = ConfigDict(extra="forbid")

    username: str | None = None
    password: str | None = None
    ssl: bool = False
    ssl_ca_certs: FilePath | None = None
    ssl_ca_data: str | None = None
    ssl_ca_path: DirectoryPath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    ssl_password: str | None = None
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_check_hostname: bool = True
    ssl_min_version: Literal["771", "772"] | None = None  # as in redis-py: TLS 1.2, TLS 1.3
    ssl_ciphers: str | None = None

    @model_validator(mode="after")
    def _needs_tls(self) -> Self:
        if given := sorted(name for name in self.model_fields_set if name.startswith("ssl_") and not self.ssl):
            raise ValueError(f"{given[0]} needs TLS: rediss:// or ssl=true")
        return self


class _ServerOptions(_ConnectionOptions):
    """Options of a connection to a server."""

    db: NonNegativeInt = 0
    protocol: Literal["2", "3"] | None = None
    client_name: str | None = None
    health_check_interval: NonNegativeInt = 0
    max_connections: PositiveInt | None = None
    socket_timeout: _Seconds | None = None
    socket_connect_timeout: _Seconds | None = None
    socket_keepalive: bool = True


@dataclass(frozen=True)
class RedisUrl:
    """A parsed URL.

    Attributes:
        addresses: hosts and ports of the server, of the Sentinels or of nodes of the Cluster; none for a Unix socket.
        service: the name of the server in the Sentinels; empty without Sentinels.
        options: keyword arguments of redis-py's clients.
        sentinel_options: the same for connections to Sentinels.
    """

    kind: Kind
    addresses: tuple[tuple[str, int], ...]
    service: str
    options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Parses a URL. Raises ``ValueError``."""
        scheme, separator, rest = url.strip().partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError(f"a Redis URL begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
        place, _, query = rest.partition("?")
        if "#" in rest or "@" in query:
            raise ValueError(f"a # or @ in the Redis URL is not where one can be; {_ENCODING}")
        kind, has_tls = _SCHEMES[scheme]
        authority, slash, path = place.partition("/")
        credentials, _, hosts = authority.rpartition("@")
        values = _credentials(credentials)
        values |= {"ssl": "true"} if has_tls else {}
        addresses: tuple[tuple[str, int], ...] = ()
        service = ""
        if scheme == "unix":
            if hosts or not path:
                raise ValueError("a Redis URL of a Unix socket has an absolute path: unix:///path/to/socket")
        else:
            addresses = _addresses(hosts, kind)
            if kind == "sentinel":
                service, _, path = path.partition("/")
            values |= {"db": path.strip("/")} if path.strip("/") else {}
        given = dict(parse_qsl(query, keep_blank_values=True))
        of_sentinel = {name for name in given if kind == "sentinel" and name.startswith(_SENTINEL_PREFIX)}
        options = _validated(_ServerOptions, values | {name: given[name] for name in given.keys() - of_sentinel})
        if has_tls and not options["ssl"]:
            raise ValueError("option ssl of the Redis URL contradicts its scheme")
        sentinel_options = _sentinel_options(options, {name: given[name] for name in of_sentinel})
        _check_combination(kind, options, service, is_socket=scheme == "unix")
        if scheme == "unix":
            options["unix_socket_path"] = slash + unquote(path)
        return cls(kind, addresses, unquote(service), options, sentinel_options)

    def redact(self, text: str) -> str:
        """Words of a server or a library without the passwords of this URL, which they may repeat."""
        # Redis repeats the arguments of a command that it does not know: of AUTH, where that was renamed.
        text = text.partition(", with args beginning with")[0]
        names = ("password", "ssl_password")
        secrets = [options.get(name) for options in (self.options, self.sentinel_options) for name in names]
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def words_of(self, error: BaseException) -> str:
        """What an error says, or its type, without passwords."""
        return self.redact(str(error)) or type(error).__name__


def _credentials(text: str) -> dict[str, str]:
    username, _, password = text.partition(":")
    return {name: unquote(value) for name, value in (("username", username), ("password", password)) if value}


def _addresses(hosts: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    default_port = 26379 if kind == "sentinel" else 6379
    if not hosts and kind == "server":
        return (("localhost", default_port),)
    addresses = []
    for address in hosts.split(","):
        match = _ADDRESS.fullmatch(address)
        port = int(match["port"] or default_port) if match else 0
        if match is None or not 0 < port < 2**16 or not _is_ipv6(match["ipv6"]):
            raise ValueError(f"an address in the Redis URL is not HOST, HOST:PORT or [IPV6]:PORT; {_ENCODING}")
        addresses.append((match["ipv6"] or match["host"], port))
    if len(addresses) > 1 and kind == "server":
        raise ValueError("several addresses in a Redis URL need redis+sentinel:// or redis+cluster://")
    return tuple(addresses)


def _is_ipv6(text: str | None) -> bool:
    try:
        return text is None or bool(IPv6Address(text))
    except ValueError:
        return False


def _sentinel_options(options: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Options of connections to Sentinels: the TLS options of servers unless there are others."""
    own = {name.removeprefix(_SENTINEL_PREFIX): value for name, value in given.items()}
    checked = _validated(_ConnectionOptions, {"ssl": options.get("ssl", False)} | own, _SENTINEL_PREFIX)
    shared = {name: value for name, value in options.items() if name.startswith("ssl_") and checked["ssl"]}
    return shared | checked


def _validated(model: type[_ConnectionOptions], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    try:
        options = model.model_validate(values).model_dump(mode="json", exclude_unset=True)
    except ValidationError as errors:
        error = errors.errors()[0]
        name = prefix + "".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            known = name if _OPTION_NAME.fullmatch(name) else ""
            raise ValueError(f"unknown option {known} of the Redis URL".replace("  ", " ")) from None
        message = error["msg"].removeprefix("Value error, ")
        raise ValueError(f"option {name} of the Redis URL: {message}" if error["loc"] else message) from None
    if "protocol" in options:
        options["protocol"] = int(options["protocol"])
    if "ssl_min_version" in options:
        options["ssl_min_version"] = TLSVersion(int(options["ssl_min_version"]))
    return options


def _check_combination(kind: Kind, options: Mapping[str, Any], service: str, *, is_socket: bool) -> None:
    refused: set[str] = set()
    if is_socket:
        refused = {name for name in options if name.startswith("ssl") or name == "socket_keepalive"}
    elif kind == "cluster":
        refused = {"ssl_ca_path", "ssl_password"} | ({"db"} if options.get("db") else set())
    if names := sorted(refused & options.keys()):
        raise ValueError(f"option {names[0]} of the Redis URL is not possible with this scheme")
    if kind == "sentinel" and not service:
        raise ValueError("a Sentinel URL needs a service name: redis+sentinel://host:26379/service")
