"""Routes that take nothing but the request, answered before the framework's machinery for parameters and dependencies.

::

    FastAPI   exit stacks ──> match, match again ──> dependencies, parameters ──> endpoint
    direct    look up the path ──> authorize ──────────────────────────────────> endpoint

FastAPI's way through an included router costs more than all else that an answer from the cache needs. The route that FastAPI
has stays where it is, and in the OpenAPI document; requests for its path and method do not come that far.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problem_handlers import answer_to

__all__ = ["DirectRoutes"]

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """The innermost middleware. Endpoints of ``routers`` have one parameter, the request. ``authorize`` stands for the
    dependencies that the routers are included with, and raises the problem of a request that is refused.
    """

    def __init__(
        self, app: ASGIApp, routers: Sequence[APIRouter], authorize: Callable[[Request], Awaitable[None]]
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._routes: dict[tuple[str, str], tuple[APIRoute, Endpoint]] = {
            (method, route.path): (route, route.endpoint)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        found = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], endpoint = found  # as FastAPI says which one was taken
        request = Request(scope, receive, send)
        try:
            await self._authorize(request)
            response = await endpoint(request)
        except Exception as error:
            response = await answer_to(request, error)
        await response(scope, receive, send)
