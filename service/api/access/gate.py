"""What stands before every route that is not open: a key, its roles, its rate."""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address, ip_address
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.api.access.key_file import Keys
from service.api.access.keys import ApiKey
from service.api.access.rates import Rates
from service.api.access.roles import REQUIRED_ROLES, Role
from service.http.problems import ContentTooLarge, Forbidden, ProblemDetail, TooManyRequests, Unauthorized, Unavailable
from service.settings import Settings

__all__ = ["Gate", "admit", "admit_directly", "spend"]

_bearer = HTTPBearer(auto_error=False, description="An API key, where the service asks for one.")
_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="The same, for clients that cannot send the other."
)


class Gate:
    """One application's keys and rates."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings)
        self._rates = Rates(settings)

    @staticmethod
    def of(request: Request) -> Gate:
        """The one of the application that a request came to."""
        gate: Gate = request.app.state.gate
        return gate

    async def close(self) -> None:
        """Closes what it has opened."""
        await self._rates.close()

    async def admit(self, request: Request, given: str) -> None:
        """Lets a request in, or raises the problem that says why not. ``request.state`` then has

        - ``caller``: a name of the key that does not tell it, the same in every process; None where no key is needed;
        - ``key_name``: the key's name, for logs; None likewise;
        - ``spends``: whose rate the request is counted to, and the rate; None if it is not counted.
        """
        state = request.scope["state"]  # what ``request.state`` shows, without its detour
        state["caller"] = state["key_name"] = state["spends"] = None
        required = REQUIRED_ROLES[request.scope["route"].path]
        if self._keys.are_asked_for:
            key = self._identify(given)
            state["caller"] = hashlib.sha256(b"titok:caller:" + given.encode()).hexdigest()[:16]
            state["key_name"] = key.name
            _check_roles(key, required)
            rate = key.rate or self._settings.rate_limit
        else:
            rate = self._settings.anonymous_rate_limit
        if rate is not None and required:
            name = state["key_name"]
            state["spends"] = (f"address:{_network_of(request)}" if name is None else f"key:{name}", rate)
            # The first image before a byte of the body is read: who has nothing left is told so at once.
            await self.spend(request, 1)

    async def spend(self, request: Request, images: int) -> None:
        """Counts images to the rate of a request that has one. Raises ``TooManyRequests``, or ``ContentTooLarge`` for more
        than the rate ever allows.
        """
        spender, rate = request.scope["state"]["spends"]
        allowance = await self._rates.spend(spender, rate, images)
        request.scope["state"]["rate_headers"] = allowance.headers()
        if images > allowance.quota:
            raise ContentTooLarge(
                f"The request asks for more images than the rate of {rate} ever allows at once. Split it.",
                errors=[
                    ProblemDetail(pointer="body", detail="more images than the rate", expected=f"<= {allowance.quota}")
                ],
            )
        if not allowance.is_allowed:
            raise TooManyRequests(
                f"The rate of {rate}, in images, is used up. Try again after the time in Retry-After.",
                retry_after=allowance.reset,
            )

    def _identify(self, given: str) -> ApiKey:
        ring = self._keys.current()
        if ring is None:
            raise Unavailable("The API keys cannot be read; the log says why.", retry_after=5.0)
        key = ring.find(given) if given else None
        if key is None:
            reason, challenge = ("unknown", 'Bearer error="invalid_token"') if given else ("missing", "Bearer")
            raise Unauthorized(
                f"The API key is {reason}. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                headers={"WWW-Authenticate": challenge},
            )
        return key


async def admit(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    key: Annotated[str | None, Depends(_header)],
) -> None:
    """The dependency of every route that asks for a key."""
    await Gate.of(request).admit(request, credentials.credentials if credentials is not None else key or "")


async def admit_directly(request: Request) -> None:
    """``admit``, for a route that is called without dependencies (``service.api.direct_routes``)."""
    credentials = await _bearer(request) if "authorization" in request.headers else None
    await admit(request, credentials, request.headers.get("x-api-key"))


async def spend(request: Request, images: int) -> None:
    """Counts the images of a request, once it is known how many they are; the first was counted when it was let in."""
    if images > 1 and request.scope["state"]["spends"] is not None:
        await Gate.of(request).spend(request, images - 1)


def _check_roles(key: ApiKey, required: frozenset[Role]) -> None:
    if not key.allows(required):
        roles = " ".join(sorted(required))
        raise Forbidden(
            f"The API key {key.name!r} does not have the role that this asks for: {roles}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{roles}"'},
        )


def _network_of(request: Request) -> str:
    """A client's address; of an IPv6 one the first 64 bits, because the rest is the client's to choose."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host or "unknown"
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else host
