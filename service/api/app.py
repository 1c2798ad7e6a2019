"""The ASGI application of the public API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from service.api.access.authorization import SECURITY_SCHEMES, AccessControl, check_routes
from service.api.access.rate_limiter import RateLimiter
from service.api.error_table import add_error_handlers
from service.api.health import public_health
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
from service.api.routes.own_pages import own_pages_router
from service.api.state import ApiState
from service.cache.opening import open_cache
from service.engine import EngineStopped, Link
from service.http.body_limits import BodyLimits
from service.http.deadlines import Deadlines
from service.http.middleware import HeadAsGet, RequestContext
from service.operations.build import build_operations
from service.operations.rendered_images import RenderedImageCache
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.observer import RedisMetrics
from service.telemetry.request_record import CLIENT_GONE, UNMATCHED
from service.telemetry.tracing import Tracer, open_tracer
from service.version import VERSION

log = logging.getLogger(__name__)

_DESCRIPTION = """Encodes images as discrete tokens, decodes tokens to images, and generates images of a class (TiTok).

**Errors** are problem documents (RFC 9457), `application/problem+json`: what was wrong, what was expected, and where.

**Request headers**: `X-Request-Timeout-Ms` sets the deadline of the request in milliseconds (at least 1, at most the
limit of the service), after which it is answered 504. `X-Request-ID` sets the id of the request, which is repeated in the
response, in logs and in the `instance` of a problem document.

**Revisions**: tokens are valid for one tokenizer and revision only. Images and packed codes are returned with the headers
`X-Titok-Model` and `X-Titok-Revision`; if they are sent with packed codes, the service checks them.
"""

_RESOURCES = (encode, decode, codes, images, generate, reconstruct, mix, openai_images, models, documentation)


# Besides the codes that a route declares: success, a client that left, an internal error.
_UNDECLARED_CODES = (200, CLIENT_GONE, 500)


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document with the security schemes of ``KeyedRoute``."""
        document = super().openapi()
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        return document


def create_app(
    settings: Settings,
    links: Sequence[Link],
    *,
    on_failure: Callable[[BaseException], None] = lambda _: None,
    engine_seconds: float = 0.0,
) -> FastAPI:
    """The public API, in front of the workers behind ``links``. Its lifespan starts and stops the engine; the start takes at
    most ``engine_seconds`` if the engine is not ready before. ``on_failure``: see ``Engine``.
    """
    metrics = Metrics()
    tracer = open_tracer()
    access_control = AccessControl(settings, RateLimiter(settings, RedisMetrics(metrics.rates_redis)))
    state = ApiState(
        settings=settings,
        keys=access_control.keys,
        rate_limiter=access_control.rate_limiter,
        operations=build_operations(
            settings,
            links,
            cache=open_cache(settings, RedisMetrics(metrics.cache_redis)),
            metrics=metrics,
            observer=None if tracer is None else tracer.observer(metrics),
            on_failure=on_failure,
        ),
        metrics=metrics,
        rendered_images=RenderedImageCache(settings.picture_cache_bytes),
    )
    app = _application(_routes(settings), _lifespan(state, tracer, engine_seconds))

    async def health() -> dict[str, Any]:
        return public_health(state)

    app.state.api = state
    app.state.access_control = access_control
    app.state.health = health
    _add_middleware(app, state, tracer)
    add_error_handlers(app)
    check_routes(app.routes)
    _create_series(app, metrics)
    return app


def _application(routes: list[BaseRoute], lifespan: Lifespan[FastAPI]) -> FastAPI:
    return _Application(
        docs_url=None,  # routes/documentation.py serves the page with a content security policy
        redoc_url=None,
        title="TiTok image tokens",
        version=VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own
        routes=routes,
        redirect_slashes=False,
    )


def _routes(settings: Settings) -> list[BaseRoute]:
    routers = [*(resource.router for resource in _RESOURCES), operations.health_router]
    if settings.playground:
        # Needs no key: the page holds no data, and asks for a key where the API needs one.
        routers.append(playground.router)
    if settings.pages_dir is not None:
        routers.append(own_pages_router(settings.pages_dir))
    # In one list: FastAPI solves an included router's prefixes and dependencies again for each request.
    return [route for router in routers for route in router.routes]


def _lifespan(
    state: ApiState, tracer: Tracer | None, engine_seconds: float
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine, cache = state.operations.engine, state.operations.cache
        engine.start()
        cache.connect()
        state.rate_limiter.connect()
        ready = asyncio.create_task(_log_readiness(state))
        await asyncio.wait((ready,), timeout=engine_seconds)
        try:
            yield
        finally:
            ready.cancel()
            await engine.stop(state.settings.drain_seconds)
            await asyncio.to_thread(state.operations.threads.close)
            await cache.close()
            await state.rate_limiter.close()
            if tracer is not None:
                await tracer.close()

    return lifespan


def _add_middleware(app: FastAPI, state: ApiState, tracer: Tracer | None) -> None:
    """From the innermost to the outermost."""
    settings = state.settings
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_json_bytes=settings.max_json_bytes,
        max_bytes_in_flight=settings.body_bytes_in_flight,
    )
    app.add_middleware(Deadlines, max_seconds=settings.request_timeout)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            # Of any name: cookies, for which wildcards are not valid, are never used.
            allow_headers=("*",),
            expose_headers=("*",),
        )
    app.add_middleware(
        RequestContext,
        metrics=state.metrics,
        in_flight=state.requests,
        is_draining=lambda: state.is_draining,
        access_log=settings.access_log,
        tracer=tracer,
    )


def _create_series(app: FastAPI, metrics: Metrics) -> None:
    """Creates the request counters of every route of the API, and of requests that end before they reach a route."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            metrics.expect_requests(route.path, route.methods or (), {*map(int, route.responses), *_UNDECLARED_CODES})
    metrics.expect_requests(UNMATCHED, ("GET", "POST"), (404, 405, 408, 413, 429, 503, *_UNDECLARED_CODES))
    metrics.expect_requests(UNMATCHED, ("other",), (400, 405, 408, 431, 503))  # most of them refused by the server


async def _log_readiness(state: ApiState) -> None:
    try:
        await state.operations.engine.ready()
    except EngineStopped:
        return  # the cause is logged where it happened
    info = state.info
    log.info(
        "ready: %s revision %s on %s, precision %s, generator %s",
        info.name,
        info.revision,
        info.device,
        ", ".join(f"{part} {dtype}" for part, dtype in info.precision.items()),
        info.generator.revision if info.generator else "none",
    )
