"""What both clients have in common: where they connect to, with what key, for how long, and what failures are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, TypeAlias

import httpx

from service.client.calls import Call
from service.client.errors import ConnectionFailed, TiTokError
from service.client.retrying import RetryPolicy, Tries
from service.version import VERSION

__all__ = ["Connection", "Progress", "total_of"]

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with how many images are done, and how many there are (None: not known), as requests of a list are answered."""


class Connection:
    """The settings of a client.

    Args:
        url: where the service is, for example ``http://127.0.0.1:8000``.
        api_key: one of the service's keys, where it asks for one.
        timeout: seconds that one request may take, all its tries and the waits between them included; None: no bound.
            The service is told what is left of it.
        retry: how often a request is tried, and how long it waits in between.
        concurrency: requests of one long list that are under way at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 4,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a service; one begins with http:// or https://")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"a timeout is more than 0 seconds, not {timeout}")
        if concurrency < 1:
            raise ValueError(f"at least one request at a time must be allowed, not {concurrency}")
        self.url = url.rstrip("/")
        self.concurrency = concurrency
        self._headers = {"User-Agent": f"titok-client/{VERSION}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._retry = retry or RetryPolicy()

    def tries(self) -> Tries:
        """The tries of a request that begins now."""
        return Tries(self._retry, self._timeout)

    def request(self, call: Call[Any], tries: Tries) -> Mapping[str, Any]:
        """The arguments of httpx's ``build_request`` for one try."""
        return {
            "method": call.method,
            "url": self.url + call.path,
            "headers": {**self._headers, **call.headers, **tries.headers()},
            "timeout": tries.remaining(),
            **call.body,
        }

    def failure(self, error: httpx.HTTPError, tries: Tries) -> TiTokError:
        """What a try that brought no whole answer is to the caller."""
        if isinstance(error, httpx.TimeoutException):
            return tries.deadline_exceeded()
        return ConnectionFailed(f"{self.url}: {error or type(error).__name__}")


def total_of(items: Iterable[object]) -> int | None:
    """How many there are, if that can be known before they are read."""
    return len(items) if isinstance(items, Sized) else None
