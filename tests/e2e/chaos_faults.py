"""Faults of the chaos run: processes that are killed, and a Redis that is paused, stopped or made a replica."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.e2e.conftest import Server
from tests.service.cache.redis_server import RedisServer

__all__ = ["Faults"]

KILLED_FRONT_END = "front end 0"  # always the same: what leaks in the other one adds up
REDIS_FAULT_SECONDS = 1.0


class Faults:
    """Causes one kind of fault after the other, each with ``cause_next``. ``caused`` counts them by kind."""

    def __init__(self, server: Server, redis: RedisServer) -> None:
        self._server = server
        self._redis = redis
        self._kinds: list[Callable[[], Awaitable[None]]] = [
            self.worker_killed,
            self.redis_paused,
            self.front_end_killed,
            self.redis_demoted,
            self.redis_stopped,
        ]
        self._outage = (-math.inf, -math.inf)
        self.caused = Counter[str]({kind.__name__: 0 for kind in self._kinds})

    async def cause_next(self) -> None:
        """Causes the kind that has been caused least often, and returns when its cause is over."""
        kind = min(self._kinds, key=lambda one: self.caused[one.__name__])
        await kind()
        self.caused[kind.__name__] += 1

    def all_caused(self) -> bool:
        return all(self.caused.values())

    def met_front_end_outage(self, begun: float) -> bool:
        """Whether a front end was away at some time since ``begun``."""
        return self._outage[1] >= begun

    async def worker_killed(self) -> None:
        await self._kill("worker")

    async def front_end_killed(self) -> None:
        self._outage = (time.monotonic(), math.inf)
        await self._kill(KILLED_FRONT_END)
        await asyncio.to_thread(self._server.wait_until_ready)
        self._outage = (self._outage[0], time.monotonic())

    async def redis_paused(self) -> None:
        """Connections are accepted, commands wait."""
        await self._command("CLIENT", "PAUSE", str(int(1000 * REDIS_FAULT_SECONDS)), "ALL")
        await asyncio.sleep(REDIS_FAULT_SECONDS)

    async def redis_stopped(self) -> None:
        """Nothing is answered, not even a new connection."""
        self._redis.signal(signal.SIGSTOP)
        await asyncio.sleep(REDIS_FAULT_SECONDS)
        self._redis.signal(signal.SIGCONT)

    async def redis_demoted(self) -> None:
        """Writes are refused: a replica of a primary that is not there."""
        await self._command("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(REDIS_FAULT_SECONDS)
        await self._command("REPLICAOF", "NO", "ONE")

    async def _command(self, *words: str) -> None:
        with self._redis.client() as client:
            await asyncio.to_thread(client.execute_command, *words)

    async def _kill(self, name: str) -> None:
        processes: list[Any] = (await asyncio.to_thread(self._server.health))["processes"]
        for process in processes:
            if process["name"].startswith(name) and process["pid"]:
                with suppress(ProcessLookupError):
                    os.kill(process["pid"], signal.SIGKILL)
