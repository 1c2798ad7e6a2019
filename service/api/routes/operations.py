"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: health and metrics for operators.

``app.state.health`` is a coroutine function that returns the health document; ``app.state.exposition`` of the admin
application returns the metrics in Prometheus' text format.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

health_router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; the body contains the reason."}}


def _example(document: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": document}}}}


@health_router.get("/livez", summary="Liveness", responses=_example({"status": "alive"}))
async def livez() -> dict[str, str]:
    """Returns 200 while the event loop runs. Restart the process only if this fails."""
    return {"status": "alive"}


@health_router.get("/readyz", summary="Readiness", responses=_NOT_READY | _example({"status": "ready", "reason": None}))
async def readyz(request: Request) -> Response:
    """Returns 200 while models are loaded, a device is available, and the service is not draining."""
    health = await request.app.state.health()
    return _answer(health, {"status": health["status"], "reason": health["reason"]})


@health_router.get(
    "/healthz", summary="Health of all parts", responses=_NOT_READY | _example({"status": "ready", "lanes": {}})
)
async def healthz(request: Request) -> Response:
    """Returns models, queues and requests in progress. The status is that of `/readyz`."""
    health = await request.app.state.health()
    return _answer(health, health)


@metrics_router.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Returns the metrics in the text exposition format."""
    return Response(await request.app.state.exposition(), media_type=CONTENT_TYPE_LATEST)


def _answer(health: Mapping[str, Any], document: Mapping[str, Any]) -> Response:
    return JSONResponse(document, HTTPStatus.OK if health["status"] == "ready" else HTTPStatus.SERVICE_UNAVAILABLE)
