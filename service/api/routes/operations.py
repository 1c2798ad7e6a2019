"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: the truth, for those who run the service.

An application says how it is in its ``state.health``, a coroutine function that gives the document of
``service/processes/health.py``; the operator's one also has ``state.exposition``, with the text that Prometheus reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

__all__ = ["health_router", "metrics_router"]

health_router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; the body says why."}}


def _example(document: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": document}}}}


@health_router.get("/livez", summary="Does the process answer?", responses=_example({"status": "alive"}))
async def livez() -> dict[str, str]:
    """200 while the event loop turns. Restart the process when this fails, and only then."""
    return {"status": "alive"}


@health_router.get(
    "/readyz", summary="Can a real batch run now?", responses=_NOT_READY | _example({"status": "ready", "reason": None})
)
async def readyz(request: Request) -> Response:
    """200 only while models are loaded, a device takes work, and the service is not draining."""
    health = await request.app.state.health()
    return _answer(health, {"status": health["status"], "reason": health["reason"]})


@health_router.get(
    "/healthz", summary="The state of every part", responses=_NOT_READY | _example({"status": "ready", "lanes": {}})
)
async def healthz(request: Request) -> Response:
    """What is loaded, what waits, and what is being worked on; the status is that of ``/readyz``."""
    health = await request.app.state.health()
    return _answer(health, health)


@metrics_router.get("/metrics", summary="For Prometheus")
async def metrics(request: Request) -> Response:
    """The text exposition format."""
    return Response(await request.app.state.exposition(), media_type=CONTENT_TYPE_LATEST)


def _answer(health: Mapping[str, Any], document: Mapping[str, Any]) -> Response:
    return JSONResponse(document, HTTPStatus.OK if health["status"] == "ready" else HTTPStatus.SERVICE_UNAVAILABLE)
