"""Authorizes requests to every route that is not open: API key, roles, rate limit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from cachetools import LRUCache
from fastapi import Request
from fastapi.routing import APIRoute
from fastapi.security.utils import get_authorization_scheme_param
from starlette.responses import Response
from starlette.routing import BaseRoute, request_response

from service.api.access.key_store import ReloadingKeyStore
from service.api.access.keys import ApiKey
from service.api.access.rate_limiter import RateLimiter, RateLimitResult
from service.api.access.roles import OPEN_PATHS, REQUIRED_ROLES, Role
from service.api.error_table import to_problem
from service.errors import ErrorDetail
from service.http.problems import ContentTooLarge, Forbidden, TooManyRequests, Unauthorized, Unavailable
from service.settings import Settings, parse_rate

_CONSUMERS = 100_000  # whose last request is remembered
_REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)  # a request that counts no images

SECURITY_SCHEMES = {
    "HTTPBearer": {"type": "http", "scheme": "bearer", "description": "API key, if keys are configured."},
    "APIKeyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "API key, for clients that cannot send `Authorization`.",
    },
}
"""The components of the OpenAPI document that ``KeyedRoute`` refers to."""


class AccessControl:
    """The keys and rate limits of one application."""

    def __init__(self, settings: Settings, rate_limiter: RateLimiter) -> None:
        self._settings = settings
        self.keys = ReloadingKeyStore(settings)
        self.rate_limiter = rate_limiter
        self._last_images: LRUCache[str, int] = LRUCache(_CONSUMERS)

    @staticmethod
    def of(request: Request) -> AccessControl:
        """The instance of the application that serves ``request``."""
        access_control: AccessControl = request.app.state.access_control
        return access_control

    async def authorize(self, request: Request, required: frozenset[Role]) -> None:
        """Checks the request's key and counts one image. Raises the problem that applies. Sets in ``request.state``:

        - ``caller``: a digest of the key, the same in every process; None where no key is needed;
        - ``key_name``: the key's name, for logs; None likewise;
        - ``rate_limit``: the consumer and the rate that the request's images count to; None if they do not count.
        """
        state = request.scope["state"]
        state["caller"] = state["key_name"] = state["rate_limit"] = None
        state["counted_images"] = 0
        if self.keys.are_required:
            given = _key_of(request)
            key = self._identify(given)
            state["caller"] = hashlib.sha256(b"titok:caller:" + given.encode()).hexdigest()[:16]
            state["key_name"] = key.name
            _check_roles(key, required)
            rate = key.rate or self._settings.rate_limit
        else:
            rate = self._settings.anonymous_rate_limit
        if rate is not None and required:
            name = state["key_name"]
            state["rate_limit"] = f"address:{_network_of(request)}" if name is None else f"key:{name}", rate
            # Count the first image before reading the body: a caller without quota is refused at once, until there is
            # room for as many images as its last request had.
            await self._consume(request, 1, expected=self._last_images.get(state["rate_limit"][0], 1))

    async def consume_quota(self, request: Request, images: int) -> None:
        """Counts the images of a request that has a rate, besides the first: all of them or none. Raises
        ``TooManyRequests``, or ``ContentTooLarge`` for more than the rate ever allows.
        """
        self._last_images[request.scope["state"]["rate_limit"][0]] = images
        if images > 1:
            await self._consume(request, images, expected=images)

    async def _consume(self, request: Request, images: int, *, expected: int) -> None:
        state = request.scope["state"]
        consumer, rate = state["rate_limit"]
        quota, _ = parse_rate(rate)
        more = images - state["counted_images"] if images <= quota else 0
        result = await self.rate_limiter.consume(consumer, rate, more)
        state["rate_headers"] = result.headers()
        if result.is_allowed and images <= quota:
            state["counted_images"] = images
            return
        if state["counted_images"]:
            result = await self.give_back(request)
        if images > quota:
            raise ContentTooLarge(
                f"The request has more images than the rate limit of {rate} allows at once. Split it.",
                errors=[ErrorDetail(pointer="body", detail="more images than the rate", expected=f"<= {quota}")],
            )
        raise TooManyRequests(
            f"The rate limit of {rate}, in images, is reached. Try again after the time in Retry-After.",
            retry_after=result.wait(min(expected, quota)),
        )

    async def give_back(self, request: Request) -> RateLimitResult:
        """Gives back the images that were counted for a request."""
        state = request.scope["state"]
        consumer, rate = state["rate_limit"]
        result = await self.rate_limiter.consume(consumer, rate, -state["counted_images"])
        state["counted_images"] = 0
        state["rate_headers"] = result.headers()
        return result

    def _identify(self, given: str) -> ApiKey:
        keys = self.keys.current()
        if keys is None:
            raise Unavailable("The API keys cannot be read. The log contains the reason.", retry_after=5.0)
        key = keys.find(given) if given else None
        if key is None:
            reason, challenge = ("unknown", 'Bearer error="invalid_token"') if given else ("missing", "Bearer")
            raise Unauthorized(
                f"The API key is {reason}. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                headers={"WWW-Authenticate": challenge},
            )
        return key


class KeyedRoute(APIRoute):
    """A route that needs an API key with the roles of its path, where keys are configured. The key is checked before
    anything else of the request.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.openapi_extra = {**(self.openapi_extra or {}), "security": [{name: []} for name in SECURITY_SCHEMES]}
        if "POST" in (self.methods or ()):
            self.app = request_response(self.get_route_handler())  # without FastAPI's exit stacks for dependencies

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler after authorization. Raises ``KeyError`` for a path without roles."""
        required = REQUIRED_ROLES[self.path]
        # The endpoint of a POST route reads the body itself and returns a response: FastAPI has nothing to solve.
        handle = self.endpoint if "POST" in (self.methods or ()) else super().get_route_handler()

        async def authorize_and_handle(request: Request) -> Response:
            access_control = AccessControl.of(request)
            await access_control.authorize(request, required)
            try:
                return await handle(request)
            except Exception as error:
                if request.scope["state"]["counted_images"] and to_problem(error).status in _REFUSED:
                    await access_control.give_back(request)
                raise

        return authorize_and_handle


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Raises ``LookupError`` for a route that needs no key and is not listed as open."""
    for route in routes:
        path = getattr(route, "path", None)
        if not isinstance(route, KeyedRoute) and path not in OPEN_PATHS:
            raise LookupError(f"service/api/access/roles.py does not list {path!r}")


async def consume_quota(request: Request, images: int) -> None:
    """Counts the images of a request, besides the first, which ``authorize`` has counted."""
    if request.scope["state"]["rate_limit"] is not None:
        await AccessControl.of(request).consume_quota(request, images)


def _key_of(request: Request) -> str:
    """The key that a request was sent with, or nothing."""
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    return token if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _check_roles(key: ApiKey, required: frozenset[Role]) -> None:
    if not key.allows(required):
        roles = " ".join(sorted(required))
        raise Forbidden(
            f"The API key {key.name!r} does not have the required role: {roles}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{roles}"'},
        )


def _network_of(request: Request) -> str:
    """A client's address; for IPv6 its first 64 bits, because a client can choose the others."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host or "unknown"
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
