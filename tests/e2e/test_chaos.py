"""Every request ends exactly once and correctly while workers are killed. The long run: ``chaos.py``."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from tests.e2e.chaos import run_chaos


def test_hundreds_of_requests_end_once_each_and_leak_nothing_while_workers_are_killed(
    serve: Callable[..., Any], photographs: list[Image.Image]
) -> None:
    server = serve(cache="off")
    server.wait_until_ready()
    jpegs = []
    for photograph in photographs[:8]:
        buffer = io.BytesIO()
        photograph.convert("RGB").resize((256, 256)).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    outcome = run_chaos(server, jpegs, requests=300, kill_every=2.0)
    assert outcome.wrong == []
    assert outcome.statuses["200"] > 50  # on a busy machine many of the others run out of time
    assert outcome.kills > 0
    assert server.metric("titok_worker_restarts_total", device="cpu", reason="signal") >= outcome.kills - 1
    assert outcome.threads[-1] <= max(outcome.threads[:3]) + 2
    assert outcome.descriptors[-1] <= outcome.descriptors[0]
    assert outcome.memory_mib[-1] < 1.5 * max(outcome.memory_mib[:3])
