"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: the truth, for those who run the service."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.context import ServiceContext
from service.metrics import METRICS_MEDIA_TYPE

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
    """200 only while models are loaded, the device takes work, and the service is not draining."""
    context = ServiceContext.of(request)
    state = context.engine.state
    ready = state.is_ready and context.loaded is not None
    return JSONResponse({"status": state.name, "reason": state.reason}, 200 if ready else 503)


@health_router.get(
    "/healthz", summary="The state of every part", responses=_NOT_READY | _example({"status": "ready", "lanes": {}})
)
async def healthz(request: Request) -> Response:
    """What is loaded, what waits, and what is being worked on; the status is that of ``/readyz``."""
    context = ServiceContext.of(request)
    state, facts = context.engine.state, context.loaded
    document: dict[str, Any] = {
        "status": state.name,
        "reason": state.reason,
        "lanes": context.engine.snapshot().as_dict(),
    }
    if facts is not None:
        document |= {
            "model": facts.name,
            "revision": facts.revision,
            "device": facts.device,
            "precision": dict(facts.precision),
            "generator": facts.generator.revision if facts.generator else None,
        }
    return JSONResponse(document, 200 if state.is_ready and facts is not None else 503)


@metrics_router.get("/metrics", summary="For Prometheus")
async def metrics(request: Request) -> Response:
    """The text exposition format."""
    context = ServiceContext.of(request)
    for lane, figures in context.engine.snapshot().as_dict().items():
        context.metrics.queue_images.labels(lane).set(figures["queued_images"])
    device = context.loaded.device if context.loaded is not None else "none"
    context.metrics.ready.labels(device).set(context.engine.state.is_ready)
    return Response(context.metrics.exposition(), media_type=METRICS_MEDIA_TYPE)
