"""The operator's application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from service.api.admin import create_admin_app

pytestmark = pytest.mark.anyio


async def test_metrics_that_cannot_be_collected_are_answered_with_a_problem_document() -> None:
    async def health() -> Mapping[str, Any]:
        return {"status": "ready", "reason": None}

    async def exposition() -> bytes:
        raise OSError("the disk is gone")

    transport = httpx.ASGITransport(create_admin_app(health, exposition), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
        assert "disk" not in answer.text
        assert (await client.get("/readyz")).status_code == 200
