"""Every request ends exactly once and correctly while processes are killed and Redis fails. The long run: ``chaos.py``."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.chaos import SETTINGS, run_chaos
from tests.service.cache.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket may have 107 bytes at most
        server = RedisServer(Path(folder)).start()
        yield server
        server.kill()


def test_hundreds_of_requests_end_once_each_and_leak_nothing_while_one_fault_follows_the_other(
    serve: Callable[..., Any], redis: RedisServer, photographs: list[Image.Image]
) -> None:
    server = serve(**SETTINGS, redis_url=redis.url)
    server.wait_until_ready()
    jpegs = []
    for photograph in photographs[:8]:
        buffer = io.BytesIO()
        photograph.convert("RGB").resize((256, 256)).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    outcome = run_chaos(server, redis, jpegs, requests=300, fault_every=0.5)
    assert outcome.wrong == []
    assert outcome.statuses["200"] > 50  # on a busy machine many of the others run out of time
    assert all(outcome.faults.values())
    assert server.metric("titok_worker_restarts_total", device="cpu", reason="signal") >= 1
    assert outcome.is_back(), (outcome.memory_mib, outcome.threads, outcome.descriptors)
