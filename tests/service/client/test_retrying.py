"""When a call is tried again, and how long it waits before; the clock and the dice are the test's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from service.client import ConnectionFailed, DeadlineExceeded, RetryPolicy, TiTokError, Unavailable, UnexpectedAnswer
from service.client.errors import problem_error
from service.client.retrying import Tries, retry_after_seconds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def tries(timeout: float | None = None, *, clock: Clock | None = None, dice: float = 1.0, **policy: float) -> Tries:
    return Tries(RetryPolicy(**policy), timeout, clock=clock or Clock(), chance=lambda: dice)  # type: ignore[arg-type]


def refusal(status: int, *, slug: str = "x", retry_after: float = 0.0) -> TiTokError:
    return problem_error({"type": f"urn:titok:problem:{slug}"}, status=status, retry_after=retry_after)


def test_waits_double_up_to_the_longest() -> None:
    call = tries(tries=6, first_delay=0.5, longest_delay=3.0)
    assert [call.delay_after(ConnectionFailed()) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_chance_decides_how_much_of_a_wait_is_waited() -> None:
    assert tries(first_delay=0.5, dice=0.5).delay_after(ConnectionFailed()) == 0.25


def test_what_retry_after_asks_for_is_waited_in_full_and_chance_comes_on_top() -> None:
    asked = refusal(429, retry_after=7.0)
    assert tries(first_delay=0.5, dice=0.0).delay_after(asked) == 7.0
    assert tries(first_delay=0.5, dice=1.0).delay_after(asked) == 7.5


def test_the_last_try_raises_what_it_met() -> None:
    call, last = tries(tries=2), refusal(503)
    call.delay_after(ConnectionFailed())
    with pytest.raises(TiTokError) as raised:
        call.delay_after(last)
    assert raised.value is last


def test_nothing_is_tried_that_the_deadline_would_cut_short() -> None:
    clock = Clock()
    call = tries(10.0, clock=clock, dice=0.0)
    assert call.delay_after(refusal(503, retry_after=9.0)) == 9.0
    clock.now += 9.0
    with pytest.raises(Unavailable):
        call.delay_after(refusal(503, retry_after=1.0))


def test_the_service_is_told_what_is_left_of_the_deadline() -> None:
    clock = Clock()
    call = tries(2.0, clock=clock)
    assert call.headers() == {"X-Request-Timeout-Ms": "2000"}
    clock.now += 1.5
    assert call.headers() == {"X-Request-Timeout-Ms": "500"}
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded, match="within 2 seconds"):
        call.headers()
    assert tries(None).headers() == {}


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 415, 422, 500, 504])
def test_a_refusal_that_would_come_again_is_not_tried_again(status: int) -> None:
    error = refusal(status)
    with pytest.raises(type(error)):
        tries().delay_after(error)


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_for_the_moment_is_tried_again(status: int) -> None:
    assert tries().delay_after(refusal(status)) > 0


def test_a_request_that_ends_workers_is_not_sent_again() -> None:
    with pytest.raises(TiTokError):
        tries().delay_after(refusal(503, slug="worker-crashed"))


def test_a_proxy_without_a_service_behind_it_is_asked_again() -> None:
    for status in (502, 503, 504):
        assert tries().delay_after(UnexpectedAnswer("", status=status)) > 0
    with pytest.raises(UnexpectedAnswer):
        tries().delay_after(UnexpectedAnswer("", status=404))


def test_retry_after_is_a_number_of_seconds_or_a_date() -> None:
    assert retry_after_seconds("120") == 120.0
    assert retry_after_seconds(format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)) == 0.0
    ahead = retry_after_seconds(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert 0 < ahead <= 3600
    for nonsense in (None, "", "soon", "-3", "1e9", "٣"):
        assert retry_after_seconds(nonsense) == 0.0


def test_a_policy_that_never_tries_is_refused() -> None:
    with pytest.raises(ValueError, match="once at least"):
        RetryPolicy(tries=0)
