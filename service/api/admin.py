"""The operator's application: metrics and health of the whole service, on a port that is not public."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from service.api.routes import operations
from service.http.middleware import HeadAsGet
from service.http.problem_handlers import add_problem_handlers
from service.http.problems import InternalError, problem_response
from service.version import VERSION


def create_admin_app(
    health: Callable[[], Awaitable[Mapping[str, Any]]], exposition: Callable[[], Awaitable[bytes]]
) -> FastAPI:
    """``health`` gives the document of ``service/processes/health.py``, ``exposition`` the text that Prometheus reads."""
    admin = FastAPI(title="TiTok operations", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    admin.state.health = health
    admin.state.exposition = exposition
    admin.add_middleware(HeadAsGet)
    add_problem_handlers(admin)

    @admin.exception_handler(Exception)
    async def answer(_: Request, __: Exception) -> Response:  # uvicorn logs the cause
        return problem_response(InternalError(), instance=None)

    admin.include_router(operations.health_router)
    admin.include_router(operations.metrics_router)
    return admin
