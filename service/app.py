"""Builds the ASGI application of the public API."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline

from service.access_log import AccessLog
from service.cache.opening import open_cache
from service.context import ServiceContext
from service.engine import Engine, EngineObserver, EngineStopped, LaneLimits
from service.facts import ModelFacts
from service.health import application_health
from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext
from service.observer import CacheMetrics, MetricsObserver
from service.problem_handlers import add_problem_handlers
from service.problems import Unauthorized
from service.routes import (
    codes,
    decode,
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
from service.settings import Settings
from service.tracing import open_tracer
from service.version import VERSION

__all__ = ["EngineFactory", "create_app"]

log = logging.getLogger(__name__)

_DESCRIPTION = """Turns an image into a few discrete tokens and back, and makes new images from a class (TiTok).

Errors are problem documents (RFC 9457): `application/problem+json` with what was wrong, what was expected, and where.
"""
_bearer = HTTPBearer(auto_error=False, description="One of the keys in TITOK_API_KEYS, where keys are set.")


class EngineFactory(Protocol):
    """Makes the engine of an application; it is started in its event loop."""

    def __call__(
        self, *, limits: LaneLimits, observer: EngineObserver, on_facts: Callable[[ModelFacts], None]
    ) -> Engine:
        """``on_facts`` is to be called with what is served, once that is known."""


def create_app(settings: Settings, create_engine: EngineFactory, *, access_log: AccessLog | None = None) -> FastAPI:
    """The public API. Its lifespan starts the engine, and stops it in good order."""
    metrics = Metrics()
    tracer = open_tracer()
    observer: EngineObserver = MetricsObserver(metrics)
    if tracer is not None:
        observer = tracer.observe(observer)
    context: ServiceContext

    def note_facts(facts: ModelFacts) -> None:
        context.loaded = facts

    limits = LaneLimits(
        max_batch_size=settings.max_batch_size or None,
        max_images=settings.queue_images,
        max_bytes=settings.queue_bytes,
        max_wait=settings.max_wait_ms / 1000,
    )
    engine = create_engine(limits=limits, observer=observer, on_facts=note_facts)
    cache = open_cache(settings, CacheMetrics(metrics))
    context = ServiceContext(settings, engine=engine, cache=cache, metrics=metrics)

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
            if tracer is not None:
                await tracer.close()

    app = FastAPIOffline(
        redoc_url=None,
        title="TiTok image tokens",
        version=VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.context = context
    app.state.health = health
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        is_draining=lambda: context.draining,
        access_log=access_log,
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
        app.include_router(router, dependencies=[Depends(_authorize)])
    app.include_router(operations.health_router)
    if settings.playground:
        # Without a key: it holds nothing, and asks for one itself where the API does.
        app.include_router(playground.create_router())
    return app


async def _report_readiness(context: ServiceContext) -> None:
    try:
        await context.engine.ready()
    except EngineStopped as error:
        log.error("the engine did not start: %s", error)  # noqa: TRY400  the cause is logged where it happened
        return
    facts = context.facts
    log.info(
        "ready: %s revision %s on %s, precision %s, generator %s",
        facts.name,
        facts.revision,
        facts.device,
        ", ".join(f"{part} {dtype}" for part, dtype in facts.precision.items()),
        facts.generator.revision if facts.generator else "none",
    )


async def _authorize(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    keys = ServiceContext.of(request).settings.api_keys
    if not keys:
        request.state.caller = None
        return
    given = credentials.credentials if credentials is not None else request.headers.get("x-api-key", "")
    # Every key is compared, in constant time, so that the time taken tells nothing.
    matches = [hmac.compare_digest(given.encode(), key.get_secret_value().encode()) for key in keys]
    if not any(matches):
        reason = "unknown" if given else "missing"
        raise Unauthorized(
            f"The API key is {reason}. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    # A name of the key that does not tell it, the same in every process.
    request.state.caller = hashlib.sha256(b"titok:caller:" + given.encode()).hexdigest()[:16]
