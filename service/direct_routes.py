"""Routes that take nothing but the request, called without FastAPI's machinery for parameters and dependencies.

::

    FastAPI   match, match again, dependencies, parameters, exit stacks ──> endpoint
    direct    match ──────────────────────────────── admit ───────────────> endpoint

FastAPI's way through an included router costs as much as all the rest of an answer from the cache. The route that FastAPI
has stays where it is, and in the OpenAPI document; the direct one stands in front of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

__all__ = ["serve_directly"]

Endpoint = Callable[[Request], Awaitable[Response]]


def serve_directly(app: FastAPI, router: APIRouter, *, admit: Callable[[Request], Awaitable[None]]) -> None:
    """Puts a direct route in front of each route of a router that ``app`` includes, whose endpoints take the request alone.
    ``admit`` raises the problem of a request that is not let in; it stands for the dependencies of the inclusion.
    """
    for route in router.routes:
        assert isinstance(route, APIRoute)  # noqa: S101  whatever a router of this service has
        app.router.routes.insert(0, _DirectRoute(route, admit))


class _DirectRoute(Route):
    def __init__(self, route: APIRoute, admit: Callable[[Request], Awaitable[None]]) -> None:
        endpoint: Endpoint = route.endpoint

        async def admitted(request: Request) -> Response:
            await admit(request)
            return await endpoint(request)

        super().__init__(
            route.path, admitted, methods=list(route.methods or ()), name=route.name, include_in_schema=False
        )

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As for FastAPI's routes, the scope says which one was taken."""
        match, child_scope = super().matches(scope)
        return match, child_scope if match is Match.NONE else {**child_scope, "route": self}
