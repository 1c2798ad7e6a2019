"""Builds the ASGI applications: the public API, and the operator's metrics and health."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.cache import CodeCache, MemoryCache, NoCache
from service.context import ServiceContext
from service.engine import EngineStopped, InlineEngine, LaneLimits
from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext, problem_response
from service.observer import MetricsObserver
from service.problems import (
    ContentTooLarge,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    Problem,
    ProblemDetail,
    Unauthorized,
)
from service.routes import decode, encode, generate, models, operations, reconstruct
from service.settings import Settings
from service.version import VERSION

if TYPE_CHECKING:
    from service.device import ServedDevice

__all__ = ["create_admin_app", "create_app"]

log = logging.getLogger(__name__)

_DESCRIPTION = """Turns an image into a few discrete tokens and back, and makes new images from a class (TiTok).

Errors are problem documents (RFC 9457): `application/problem+json` with what was wrong, what was expected, and where.
"""
_bearer = HTTPBearer(auto_error=False, description="One of the keys in TITOK_API_KEYS, where keys are set.")


def _open_device(settings: Settings) -> ServedDevice:
    from service.device import open_device  # torch: only a process that runs models imports it

    return open_device(settings)


def create_app(settings: Settings, *, open_device: Callable[[Settings], ServedDevice] = _open_device) -> FastAPI:
    """The public API. Its lifespan opens the device, and stops the engine in good order."""
    metrics = Metrics()
    context: ServiceContext

    def open_and_tell() -> ServedDevice:
        device = open_device(settings)
        context.loaded = device.facts
        return device

    limits = LaneLimits(
        max_batch_size=settings.max_batch_size or None,
        max_images=settings.queue_images,
        max_bytes=settings.queue_bytes,
    )
    engine = InlineEngine(open_and_tell, limits=limits, observer=MetricsObserver(metrics))
    context = ServiceContext(settings, engine=engine, cache=_cache(settings), metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        ready = asyncio.create_task(_report_readiness(context))
        try:
            yield
        finally:
            ready.cancel()
            await engine.stop(settings.drain_seconds)

    app = FastAPIOffline(
        redoc_url=None,
        title="TiTok image tokens",
        version=VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.context = context
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics)
    _add_handlers(app)
    for router in (encode.router, decode.router, generate.router, reconstruct.router, models.router):
        app.include_router(router, dependencies=[Depends(_authorize)])
    app.include_router(operations.health_router)
    return app


def create_admin_app(app: FastAPI) -> FastAPI:
    """Metrics and health of ``app``, for a port that is not public."""
    admin = FastAPI(title="TiTok operations", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    admin.state.context = app.state.context
    _add_handlers(admin)
    admin.include_router(operations.health_router)
    admin.include_router(operations.metrics_router)
    return admin


def _cache(settings: Settings) -> CodeCache:
    return NoCache() if settings.cache == "off" else MemoryCache(settings.cache_entries)


async def _report_readiness(context: ServiceContext) -> None:
    try:
        await context.engine.ready()
    except EngineStopped as error:
        log.error("the engine did not start: %s", error)  # noqa: TRY400  the cause is logged where it happened
        return
    facts = context.facts
    context.metrics.build.info({"version": VERSION, "model": facts.name, "weights": facts.revision})
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


def _add_handlers(app: FastAPI) -> None:
    app.exception_handler(Problem)(_on_problem)
    app.exception_handler(RequestValidationError)(_on_invalid_parameter)
    app.exception_handler(HTTPException)(_on_http_exception)
    app.exception_handler(ClientDisconnect)(_on_disconnect)


def _answer(request: Request, problem: Problem) -> Response:
    return problem_response(problem, instance=getattr(request.state, "request_id", None))


async def _on_problem(request: Request, problem: Problem) -> Response:
    if isinstance(problem, InternalError):
        log.error("request %s failed", getattr(request.state, "request_id", None), exc_info=problem)
    return _answer(request, problem)


async def _on_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    places = [
        ProblemDetail(
            pointer="/".join(str(part) for part in place["loc"]),
            detail=str(place["msg"]),
            value=str(place.get("input"))[:80],
            expected=", ".join(f"{key} {bound}" for key, bound in place.get("ctx", {}).items()) or None,
        )
        for place in error.errors()[:16]
    ]
    return _answer(request, InvalidRequest(f"{places[0].pointer}: {places[0].detail}.", errors=places))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """What the framework refuses on its own: unknown paths and methods, and forms it cannot read."""
    path = request.url.path[:200]
    if error.status_code == HTTPStatus.NOT_FOUND:
        hint = "Metrics are served on the admin port." if path == "/metrics" else "GET /docs lists the routes."
        return _answer(request, NotFound(f"There is nothing at {path}. {hint}"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = dict(error.headers or {})
        detail = f"{path} does not take {request.method[:20]}, but {allowed.get('Allow', 'other methods')}."
        return _answer(request, MethodNotAllowed(detail, headers=allowed))
    if error.status_code == HTTPStatus.BAD_REQUEST:
        if "Too many files" in str(error.detail):
            limit = ServiceContext.of(request).settings.max_images
            return _answer(request, ContentTooLarge(f"The form holds too many files; at most {limit} are taken."))
        return _answer(request, MalformedBody(f"The body cannot be read: {error.detail}."))
    return _answer(request, InternalError(str(error.detail)))


async def _on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody reads this answer; its status is for the metrics (499, as nginx counts it)."""
    return Response(status_code=499)
