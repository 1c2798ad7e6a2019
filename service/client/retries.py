"""Retries with exponential backoff and jitter, within one deadline for all attempts of a request."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .errors import DeadlineExceeded, TiTokError

TIMEOUT_HEADER = "X-Request-Timeout-Ms"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """At most ``tries`` attempts. The n-th retry waits for a random time of up to ``first_delay`` x 2^(n-1) seconds, at
    most ``longest_delay``, in addition to the whole ``Retry-After``.
    """

    tries: int = 6
    first_delay: float = 0.25
    longest_delay: float = 8.0

    def __post_init__(self) -> None:
        if self.tries < 1 or self.first_delay < 0 or self.longest_delay < 0:
            raise ValueError(f"tries must be at least 1 and delays must not be negative: {self}")


class Attempts:
    """The attempts of one request, from now on. ``timeout`` is in seconds; None: no deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._timeout = timeout
        self._clock = clock
        self._uniform = uniform
        self._deadline = None if timeout is None else clock() + timeout
        self._failed = 0

    def remaining(self) -> float | None:
        """Seconds until the deadline, None without one. Raises ``DeadlineExceeded`` when it has passed."""
        if self._deadline is None:
            return None
        left = self._deadline - self._clock()
        if left <= 0:
            raise self.deadline_exceeded()
        return left

    def deadline_exceeded(self) -> DeadlineExceeded:
        """The exception for a request that took too long."""
        return DeadlineExceeded(f"no answer within {self._timeout:g} seconds")

    def headers(self) -> dict[str, str]:
        """The request header that sets the service's own deadline."""
        left = self.remaining()
        return {} if left is None else {TIMEOUT_HEADER: str(max(1, int(left * 1000)))}

    def delay_after(self, error: TiTokError) -> float:
        """Seconds to wait before the next attempt. Raises the error if there is none, or none before the deadline."""
        self._failed += 1
        if not error.is_transient or self._failed >= self._policy.tries:
            raise error
        backoff = min(self._policy.longest_delay, self._policy.first_delay * 2.0 ** (self._failed - 1))
        delay = error.retry_after + backoff * self._uniform()
        if self._deadline is not None and self._clock() + delay >= self._deadline:
            raise error
        return delay


def retry_after_seconds(value: str | None) -> float:
    """Seconds of a ``Retry-After`` header (RFC 9110, section 10.2.3), which is a number or a date; 0 if it is neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
