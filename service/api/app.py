"""Builds the ASGI application of the public API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from service.api.access.authorization import AccessControl, authorize, authorize_directly
from service.api.access.roles import check_routes
from service.api.direct_routes import DirectRoutes
from service.api.routes import (
    codes,
    decode,
    documentation,
    encode,
    generate,
    images,
    mix,
    models,
    openai_images,
    operations,
    playground,
    reconstruct,
)
from service.cache.opening import open_cache
from service.engine import Engine, EngineObserver, EngineStopped, LaneLimits
from service.http.body_limits import BodyLimits
from service.http.middleware import RequestContext
from service.http.problem_handlers import add_problem_handlers
from service.inference.model_info import ModelInfo
from service.operations.context import ServiceContext, lane_limits
from service.processes.health import application_health
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.observer import CacheMetrics, MetricsObserver
from service.telemetry.tracing import open_tracer
from service.version import VERSION

__all__ = ["EngineFactory", "create_app"]

log = logging.getLogger(__name__)

_DESCRIPTION = """Turns an image into a few discrete tokens and back, and makes new images from a class (TiTok).

Errors are problem documents (RFC 9457): `application/problem+json` with what was wrong, what was expected, and where.

Any request may carry `X-Request-Timeout-Ms`, the milliseconds from 1 that its sender waits: what is late is not computed,
and answered with 504. It may carry `X-Request-ID`, which the answer, the logs and a problem's `instance` repeat. Images and
packed codes come with whose they are, in `X-Titok-Model` and `X-Titok-Revision`; sent back with packed codes, both are
checked.
"""

# What pages of other origins may send and read, where any may; credentials of a browser's own (cookies) are never used.
_CORS_SENT = (
    "Accept",
    "Authorization",
    "Content-Type",
    "X-API-Key",
    "X-Request-ID",
    "X-Request-Timeout-Ms",
    "X-Titok-Model",
    "X-Titok-Revision",
    "traceparent",
)
_CORS_READ = (
    "Content-Location",
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Request-ID",
    "X-Shape",
    "X-Dtype",
    "X-Titok-Code",
    "X-Titok-Images",
    "X-Titok-Model",
    "X-Titok-PSNR",
    "X-Titok-Revision",
    "X-Titok-SSIM",
    "X-Titok-Seed",
)


class EngineFactory(Protocol):
    """Makes the engine of an application; it is started in its event loop."""

    def __call__(
        self, *, limits: LaneLimits, observer: EngineObserver, on_model_info: Callable[[ModelInfo], None]
    ) -> Engine:
        """``on_model_info`` is to be called with what is served, once that is known."""


def create_app(settings: Settings, create_engine: EngineFactory) -> FastAPI:
    """The public API. Its lifespan starts the engine, and stops it in good order."""
    metrics = Metrics()
    tracer = open_tracer()
    observer: EngineObserver = MetricsObserver(metrics)
    if tracer is not None:
        observer = tracer.observe(observer)
    context: ServiceContext

    def set_model_info(info: ModelInfo) -> None:
        context.loaded = info

    engine = create_engine(limits=lane_limits(settings), observer=observer, on_model_info=set_model_info)
    cache = open_cache(settings, CacheMetrics(metrics))
    context = ServiceContext(settings, engine=engine, cache=cache, metrics=metrics)
    access_control = AccessControl(settings)

    async def health() -> dict[str, Any]:
        return application_health(context)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        ready = asyncio.create_task(_report_readiness(context))
        try:
            yield
        finally:
            ready.cancel()
            await engine.stop(settings.drain_seconds)
            await context.cache.close()
            await access_control.close()
            if tracer is not None:
                await tracer.close()

    app = FastAPIOffline(
        docs_url=None,  # ours has a policy of what it may load
        redoc_url=None,
        title="TiTok image tokens",
        version=VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own
    )
    app.state.context = context
    app.state.health = health
    app.state.access_control = access_control
    app.add_middleware(DirectRoutes, routers=[encode.router], authorize=authorize_directly)
    app.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, max_bytes_in_flight=settings.body_bytes_in_flight)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=_CORS_SENT,
            expose_headers=_CORS_READ,
        )
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        in_flight=context.requests,
        is_draining=lambda: context.draining,
        access_log=settings.access_log,
        tracer=tracer,
    )
    add_problem_handlers(app)
    for router in (
        encode.router,
        decode.router,
        codes.router,
        images.router,
        generate.router,
        reconstruct.router,
        mix.router,
        openai_images.router,
        models.router,
    ):
        app.include_router(router, dependencies=[Depends(authorize)])
    app.include_router(operations.health_router)
    if settings.playground:
        # Without a key: it holds nothing, and asks for one itself where the API does.
        app.include_router(playground.create_router())
    app.include_router(documentation.create_router(app))
    check_routes(app.routes)
    return app


async def _report_readiness(context: ServiceContext) -> None:
    try:
        await context.engine.ready()
    except EngineStopped as error:
        log.error("the engine did not start: %s", error)  # noqa: TRY400  the cause is logged where it happened
        return
    info = context.model_info
    log.info(
        "ready: %s revision %s on %s, precision %s, generator %s",
        info.name,
        info.revision,
        info.device,
        ", ".join(f"{part} {dtype}" for part, dtype in info.precision.items()),
        info.generator.revision if info.generator else "none",
    )
