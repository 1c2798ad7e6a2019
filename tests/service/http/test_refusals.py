"""Refusals with 429 are paced, others are not, and only so many wait."""

from __future__ import annotations

import time

import pytest

from service.http import refusals
from service.http.problems import NotFound, Problem, TooManyRequests, problem_response
from service.telemetry.timings import RequestTimings
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio

EVER = 3600.0
REFUSAL = TooManyRequests("The queue is full.")


async def answered(problem: Problem, *, deadline: float) -> float:
    """Seconds until the response of a problem begins."""
    client = AsgiClient(path="/", headers={}, body=b"")
    client.scope["state"] |= {"timings": RequestTimings(), "deadline": time.monotonic() + deadline}
    began = time.monotonic()
    async with request(problem_response(problem, instance=None), client) as response:
        await response
        assert (await client.start())["status"] == problem.status
    return time.monotonic() - began


async def test_a_refusal_begins_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.05)
    assert await answered(REFUSAL, deadline=EVER) >= 0.05


async def test_a_refusal_does_not_wait_past_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", EVER)
    assert await answered(REFUSAL, deadline=0.05) < EVER / 2


async def test_other_responses_and_refusals_beyond_the_limit_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", EVER)
    assert await answered(NotFound("There is nothing here."), deadline=EVER) < EVER / 2
    monkeypatch.setattr(refusals, "MAX_WAITING", 0)
    assert await answered(REFUSAL, deadline=EVER) < EVER / 2
