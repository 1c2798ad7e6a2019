"""Refusals with 429 are paced, others are not, and only so many wait."""

from __future__ import annotations

import time

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.http import refusals
from service.http.refusals import PacedRefusals
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio

EVER = 3600.0


async def answered(status: int, *, deadline: float) -> float:
    """Seconds until an application's response is sent through the middleware."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("", status)(scope, receive, send)

    client = AsgiClient(path="/", headers={}, body=b"")
    client.scope["state"]["deadline"] = time.monotonic() + deadline
    began = time.monotonic()
    async with request(PacedRefusals(app), client) as response:
        await response
        assert (await client.start())["status"] == status
        assert client.messages_read == 0
    return time.monotonic() - began


async def test_a_refusal_begins_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.05)
    assert await answered(429, deadline=EVER) >= 0.05


async def test_a_refusal_does_not_wait_past_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", EVER)
    assert await answered(429, deadline=0.05) < EVER / 2


async def test_other_responses_and_refusals_beyond_the_limit_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", EVER)
    assert await answered(200, deadline=EVER) < EVER / 2
    monkeypatch.setattr(refusals, "MAX_WAITING", 0)
    assert await answered(429, deadline=EVER) < EVER / 2
