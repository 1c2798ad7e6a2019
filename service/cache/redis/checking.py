"""Checks whether a Redis lets the service do what it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from service.cache.redis.connection import connect, disconnect
from service.redis_url import RedisUrl

_SOCKET_TIMEOUT = 5.0  # seconds


async def failing_commands(url: str, namespace: str) -> list[str]:
    """The commands that fail, of those that the cache and the rate limits need, with the server's words."""
    client = connect(url, socket_timeout=_SOCKET_TIMEOUT)
    key = f"{namespace}:check"
    commands: dict[str, Callable[[], Awaitable[object]]] = {
        "PING": client.ping,
        "GET (cache)": lambda: client.execute_command("GET", key),
        "SET (cache)": lambda: client.execute_command("SET", key, "", "PX", 1),
        "EVAL (rate limits)": lambda: client.execute_command("EVAL", "return 1", 1, key),
    }
    failing = []
    try:
        for name, send in commands.items():
            try:
                await send()
            except (RedisError, OSError) as error:
                failing.append(f"{name}: {RedisUrl.parse(url).redact(str(error) or type(error).__name__)}")
                if name == "PING":
                    break
    finally:
        await disconnect(client)
    return failing
