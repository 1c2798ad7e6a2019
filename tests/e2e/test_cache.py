"""Front ends of a real server that share what they know through a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server
from tests.service.cache.redis_server import RedisServer

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server.start()
    server.kill()


def encode(server: Server, jpeg: bytes) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/encode", content=jpeg, headers=JPEG, timeout=60)
    assert answer.status_code == 200, answer.text
    image: dict[str, Any] = answer.json()["data"][0]
    return image


def test_two_front_ends_share_codes_and_live_on_when_redis_is_killed(
    serve: Callable[..., Server], redis_server: RedisServer, jpeg: bytes
) -> None:
    # Patience in place of the default 10 ms: a busy machine would make some of these hits misses.
    server = serve(redis_url=redis_server.url, front_ends="2", cache_front_entries="0", redis_timeout="1")
    server.wait_until_ready()
    first = encode(server, jpeg)
    assert not first["cached"]
    while not encode(server, jpeg)["cached"]:
        pass
    for _ in range(20):  # a connection each, so of either front end
        assert encode(server, jpeg) == {**first, "cached": True}
    exposition = httpx.get(f"{server.admin_url}/metrics").text
    assert 'titok_cache_requests_total{result="hit"}' in exposition
    assert 'titok_cache_duration_seconds_count{op="get"}' in exposition
    redis_server.kill()
    for _ in range(20):
        assert encode(server, jpeg)["tokens"] == first["tokens"]
    assert "titok_cache_breaker 2.0" in httpx.get(f"{server.admin_url}/metrics").text
