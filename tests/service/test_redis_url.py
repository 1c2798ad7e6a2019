"""Redis URLs: what is valid, what is refused by name, and that no message repeats a part of a password."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.cache.redis.connection import connect, disconnect
from service.redis_url import RedisUrl
from service.settings import Settings, invalid_settings


@pytest.mark.parametrize(
    ("url", "addresses", "options"),
    [
        ("redis://", [("localhost", 6379)], {}),
        (" redis://h:7/3\n", [("h", 7)], {"db": 3}),
        ("redis://u:p%23@h", [("h", 6379)], {"username": "u", "password": "p#"}),
        ("redis://:p@ss@h", [("h", 6379)], {"password": "p@ss"}),
        ("redis://[::1]:7/0", [("::1", 7)], {"db": 0}),
        ("redis://h?health_check_interval=30", [("h", 6379)], {"health_check_interval": 30}),
        ("redis://h?ssl=false", [("h", 6379)], {"ssl": False}),
        (f"redis://h?ssl=true&ssl_ca_certs={__file__}", [("h", 6379)], {"ssl": True, "ssl_ca_certs": __file__}),
        ("redis://h?socket_timeout=5&protocol=2", [("h", 6379)], {"socket_timeout": 5.0, "protocol": 2}),
        ("rediss://h?ssl_min_version=771", [("h", 6379)], {"ssl": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}),
        ("unix://u:p@/a/b?db=2", [], {"username": "u", "password": "p", "db": 2, "unix_socket_path": "/a/b"}),
        ("redis+cluster://a,[::1]:7/0", [("a", 6379), ("::1", 7)], {"db": 0}),
        ("rediss+cluster://a", [("a", 6379)], {"ssl": True}),
    ],
)
def test_valid_urls(url: str, addresses: list[tuple[str, int]], options: Mapping[str, Any]) -> None:
    parsed = RedisUrl.parse(url)
    assert (list(parsed.addresses), parsed.options) == (addresses, options)
    Settings(redis_url=url)  # type: ignore[arg-type]

    async def open_and_close() -> None:
        await disconnect(connect(url, socket_timeout=1.0))

    asyncio.run(open_and_close())


@pytest.mark.parametrize(
    ("url", "options", "sentinel_options"),
    [
        ("redis+sentinel://:p@a/s/3", {"password": "p", "db": 3}, {"ssl": False}),
        ("redis+sentinel://a/s?sentinel_password=q&sentinel_username=u", {}, {"username": "u", "password": "q"}),
        (f"rediss+sentinel://a/s?ssl_ca_certs={__file__}", {"ssl": True}, {"ssl": True, "ssl_ca_certs": __file__}),
        (f"rediss+sentinel://a/s?ssl_ca_certs={__file__}&sentinel_ssl=false", {"ssl": True}, {"ssl": False}),
        (
            f"redis+sentinel://a/s?sentinel_ssl=true&sentinel_ssl_ca_certs={__file__}",
            {},
            {"ssl": True, "ssl_ca_certs": __file__},
        ),
    ],
)
def test_sentinels_have_a_login_and_tls_of_their_own(
    url: str, options: Mapping[str, Any], sentinel_options: Mapping[str, Any]
) -> None:
    parsed = RedisUrl.parse(url)
    assert (parsed.service, parsed.addresses) == ("s", (("a", 26379),))
    assert parsed.options.items() >= options.items()
    assert parsed.sentinel_options.items() >= sentinel_options.items()
    assert "ssl_ca_certs" not in parsed.sentinel_options or parsed.sentinel_options["ssl"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3cret", "begins with one of redis://"),
        ("http://h", "begins with one of redis://"),
        ("redis://:s3cret#1@h", "write # as %23"),
        ("redis://:s3cret?1@h", "write # as %23"),
        ("redis://:s3cret/1@h", "write # as %23"),
        ("redis://h:s3cret", "not HOST, HOST:PORT"),
        ("redis://h:0", "not HOST, HOST:PORT"),
        ("redis://h:65536", "not HOST, HOST:PORT"),
        ("redis://::1", "not HOST, HOST:PORT"),
        ("redis://[s3cret]", "not HOST, HOST:PORT"),
        ("redis://a,b", "several addresses"),
        ("redis://h/s3cret", "option db"),
        ("redis://h/-1", "option db"),
        ("redis+cluster://h/1", "option db"),
        ("redis+sentinel://h", "needs a service name"),
        ("redis+sentinel:///service", "not HOST, HOST:PORT"),
        ("unix://s3cret", "absolute path"),
        ("unix:///a?ssl=true", "option ssl"),
        ("redis://h?decode_responses=true", "unknown option decode_responses"),
        ("redis://h?S3CRET=1", "unknown option of"),
        ("redis://h?sentinel_password=s3cret", "unknown option sentinel_password"),
        ("redis+sentinel://h/s?sentinel_db=1", "unknown option sentinel_db"),
        ("redis://h?ssl=", "option ssl"),
        (f"redis://h?ssl_ca_certs={__file__}", "ssl_ca_certs needs TLS"),
        ("rediss://h?ssl_ca_certs=/s3cret", "option ssl_ca_certs of the Redis URL: Path does not point to a file"),
        ("rediss://h?ssl=false", "option ssl of the Redis URL contradicts"),
        ("redis://h?socket_timeout=s3cret", "option socket_timeout"),
        ("redis://h?socket_timeout=0", "option socket_timeout"),
        ("redis://h?protocol=4", "option protocol"),
        ("rediss+cluster://h?ssl_password=s3cret", "option ssl_password"),
    ],
)
def test_invalid_urls_are_refused_in_one_line_without_a_part_of_them(url: str, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(redis_url=url)  # type: ignore[arg-type]
    text = invalid_settings(error.value)
    assert message in text
    assert "s3cret" not in text.lower()
    assert "\n" not in text


@settings(max_examples=100, deadline=None)
@given(st.text("redis:/@?#[],.%=&sentinel_0", max_size=30))
def test_any_other_text_is_refused_as_a_value_error(text: str) -> None:
    for scheme in ("redis://", "rediss+sentinel://", "redis+cluster://", "unix://", ""):
        with contextlib.suppress(ValueError):
            RedisUrl.parse(scheme + text)


def test_words_of_a_server_are_shown_without_passwords() -> None:
    url = RedisUrl.parse("redis+sentinel://:p%40ss@a/s?sentinel_password=other")
    assert url.redact("bad p@ss or other") == "bad *** or ***"
    assert url.redact("unknown command 'AUTH', with args beginning with: 'p@'") == "unknown command 'AUTH'"
