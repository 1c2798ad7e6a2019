"""Which errors are retried, and after which delay; with a fake clock and a fake random generator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from service.client import ConnectionFailed, DeadlineExceeded, RetryPolicy, TiTokError, Unavailable, UnexpectedAnswer
from service.client.errors import problem_error
from service.client.retries import Attempts, retry_after_seconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(
    timeout: float | None = None, *, clock: Clock | None = None, uniform: float = 1.0, **policy: float
) -> Attempts:
    return Attempts(RetryPolicy(**policy), timeout, clock=clock or Clock(), uniform=lambda: uniform)  # type: ignore[arg-type]


def error_of(status: int, *, slug: str = "x", retry_after: float = 0.0) -> TiTokError:
    return problem_error({"type": f"urn:titok:problem:{slug}"}, status=status, retry_after=retry_after)


def test_delays_double_up_to_the_longest_delay() -> None:
    call = attempts(tries=6, first_delay=0.5, longest_delay=3.0)
    assert [call.delay_after(ConnectionFailed()) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_delay_is_random() -> None:
    assert attempts(first_delay=0.5, uniform=0.5).delay_after(ConnectionFailed()) == 0.25


def test_the_random_delay_is_added_to_retry_after() -> None:
    asked = error_of(429, retry_after=7.0)
    assert attempts(first_delay=0.5, uniform=0.0).delay_after(asked) == 7.0
    assert attempts(first_delay=0.5, uniform=1.0).delay_after(asked) == 7.5


def test_the_last_attempt_raises_its_error() -> None:
    call, last = attempts(tries=2), error_of(503)
    call.delay_after(ConnectionFailed())
    with pytest.raises(TiTokError) as raised:
        call.delay_after(last)
    assert raised.value is last


def test_no_retry_begins_after_the_deadline() -> None:
    clock = Clock()
    call = attempts(10.0, clock=clock, uniform=0.0)
    assert call.delay_after(error_of(503, retry_after=9.0)) == 9.0
    clock.now += 9.0
    with pytest.raises(Unavailable):
        call.delay_after(error_of(503, retry_after=1.0))


def test_a_header_sends_the_remaining_time() -> None:
    clock = Clock()
    call = attempts(2.0, clock=clock)
    assert call.headers() == {"X-Request-Timeout-Ms": "2000"}
    clock.now += 1.5
    assert call.headers() == {"X-Request-Timeout-Ms": "500"}
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded, match="within 2 seconds"):
        call.headers()
    assert attempts(None).headers() == {}


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 415, 422, 500, 504])
def test_a_permanent_error_is_not_retried(status: int) -> None:
    error = error_of(status)
    with pytest.raises(type(error)):
        attempts().delay_after(error)


@pytest.mark.parametrize("status", [429, 503])
def test_a_transient_error_is_retried(status: int) -> None:
    assert attempts().delay_after(error_of(status)) > 0


def test_a_request_that_crashes_workers_is_not_retried() -> None:
    with pytest.raises(TiTokError):
        attempts().delay_after(error_of(503, slug="worker-crashed"))


def test_errors_of_a_proxy_without_a_backend_are_retried() -> None:
    for status in (502, 503, 504):
        assert attempts().delay_after(UnexpectedAnswer("", status=status)) > 0
    with pytest.raises(UnexpectedAnswer):
        attempts().delay_after(UnexpectedAnswer("", status=404))


def test_retry_after_is_a_number_of_seconds_or_a_date() -> None:
    assert retry_after_seconds("120") == 120.0
    assert retry_after_seconds(format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)) == 0.0
    ahead = retry_after_seconds(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert 0 < ahead <= 3600
    for nonsense in (None, "", "soon", "-3", "1e9", "٣"):
        assert retry_after_seconds(nonsense) == 0.0


def test_a_policy_without_attempts_raises() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy(tries=0)
