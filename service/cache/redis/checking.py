"""Checks whether a Redis lets the service do what it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from service.cache.keys import namespace_prefix
from service.cache.redis.connection import connect, disconnect
from service.redis_url import RedisUrl

_SOCKET_TIMEOUT = 5.0  # seconds
# The commands of the script of rate limits.
_SCRIPT = """
redis.call('HSET', KEYS[1], 'current', 0)
redis.call('HMGET', KEYS[1], 'current')
redis.call('PTTL', KEYS[1])
return redis.call('PEXPIRE', KEYS[1], 1)
"""


async def failing_commands(url: str, namespace: str) -> list[str]:
    """The commands that fail, of those that the cache and the rate limits need, with the server's words."""
    client = connect(url, socket_timeout=_SOCKET_TIMEOUT)
    code, rate = namespace_prefix(namespace) + b"check", f"{namespace}:rates:check"
    commands: dict[str, Callable[[], Awaitable[object]]] = {
        "PING": client.ping,
        "MGET (cache)": lambda: client.execute_command("MGET", code),
        "SET (cache)": lambda: client.execute_command("SET", code, "", "PX", 1),
        "UNLINK (cache)": lambda: client.execute_command("UNLINK", code),
        "EVAL (rate limits)": lambda: client.execute_command("EVAL", _SCRIPT, 1, rate),
    }
    parsed, failing = RedisUrl.parse(url), []
    try:
        for name, send in commands.items():
            try:
                await send()
            except (RedisError, OSError) as error:
                failing.append(f"{name}: {parsed.words_of(error)}")
                if name == "PING":
                    break
    finally:
        await disconnect(client)
    return failing
