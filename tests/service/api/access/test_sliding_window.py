"""The arithmetic of sliding windows, in Python and in Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis as redis_client
from hypothesis import given
from hypothesis import strategies as st

from service.api.access.sliding_window import SCRIPT, WindowState
from tests.service.cache.redis_server import RedisServer

LENGTH = 20_000
QUOTA = 20

states = st.builds(
    WindowState, age=st.integers(0, LENGTH - 1), current=st.integers(0, QUOTA), previous=st.integers(0, QUOTA)
)


@given(states, st.integers(1, QUOTA))
def test_images_fit_after_the_wait_and_not_before(state: WindowState, images: int) -> None:
    wait = state.wait(images, quota=QUOTA, length=LENGTH)
    assert state.advanced(wait, LENGTH).used(LENGTH) + images <= QUOTA
    if wait:
        assert state.advanced(wait - 1, LENGTH).used(LENGTH) + images > QUOTA
    assert wait < 2 * LENGTH


@given(states, st.integers(1, QUOTA))
def test_images_given_back_are_as_if_never_counted(state: WindowState, images: int) -> None:
    assert state.add(images).add(-images) == state


def test_a_state_ages() -> None:
    assert WindowState(5, 3, 2).advanced(4, 10) == WindowState(9, 3, 2)
    assert WindowState(5, 3, 2).advanced(5, 10) == WindowState(0, 0, 3)
    assert WindowState(5, 3, 2).advanced(15, 10) == WindowState(0, 0, 0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> redis_client.Redis:
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    with server.start().client() as client:
        yield client
    server.kill()


@pytest.mark.parametrize("state", [WindowState(0, 20, 0), WindowState(15_000, 3, 8), WindowState(100, 0, 20)])
@pytest.mark.parametrize("images", [-2, 1, 5, 15])
def test_the_script_in_redis_counts_as_the_state_does(
    client: redis_client.Redis, state: WindowState, images: int
) -> None:
    client.hset("key", mapping={"current": state.current, "previous": state.previous})
    client.pexpire("key", 2 * LENGTH - state.age)
    fits, age, *numbers = client.eval(SCRIPT, 1, "key", QUOTA, LENGTH, images)
    now = WindowState(age, state.current, state.previous)
    assert bool(fits) is (images < 0 or now.used(LENGTH) + images <= QUOTA)
    assert WindowState(age, *numbers) == (now.add(images) if fits else now)
    assert not fits or LENGTH < client.pttl("key") <= 2 * LENGTH
