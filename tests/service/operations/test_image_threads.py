"""The threads for image work: how many run, what they hold, what is dropped. No event loop between two calls."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from service.engine import DeadlineExceeded, EngineStopped, QueueFull
from service.operations import image_threads
from service.operations.image_threads import ImageThreads

pytestmark = pytest.mark.anyio

SOON = 60.0  # seconds, on a loaded machine


def later() -> float:
    return time.monotonic() + SOON


@pytest.fixture
def threads() -> Iterator[ImageThreads]:
    made = ImageThreads(2, max_bytes=100, max_calls=100)
    yield made
    made.close()


class Held:
    """A function that runs until it is released, and counts how often it runs."""

    def __init__(self, threads: ImageThreads, num_bytes: int = 0) -> None:
        self.release = threading.Event()
        self.started = threading.Semaphore(0)
        self.now = self.most = self.total = 0
        self._threads, self._num_bytes = threads, num_bytes
        self._lock = threading.Lock()

    def __call__(self) -> None:
        self._threads.reserve(self._num_bytes)
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
        self.started.release()
        assert self.release.wait(SOON)
        with self._lock:
            self.now -= 1

    async def until_started(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.started.acquire, timeout=SOON)


async def idle(threads: ImageThreads, count: int = 2) -> None:
    """Waits until that many threads have nothing to do."""
    meeting = threading.Barrier(count)
    await threads.map(meeting.wait, [(SOON,)] * count, deadline=later())


async def cancelled(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_threads_go_from_call_to_call_while_the_event_loop_is_busy(threads: ImageThreads) -> None:
    done = threading.Semaphore(0)
    running = asyncio.ensure_future(
        threads.map(lambda index: (done.release(), index)[1], [(i,) for i in range(50)], deadline=later())
    )
    await asyncio.sleep(0)
    assert all(done.acquire(timeout=SOON) for _ in range(50))  # the event loop waits here
    assert await running == list(range(50))


async def test_abandoned_running_calls_keep_their_threads_and_queued_ones_do_not_run(threads: ImageThreads) -> None:
    held, after = Held(threads), Held(threads)
    await cancelled(*[asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(3)])
    gone = [asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(75)]
    await held.until_started(2)
    await cancelled(*gone)
    after.release.set()
    waiting = asyncio.ensure_future(threads.run(after, deadline=later()))
    await asyncio.sleep(0)
    assert (held.now, after.total) == (2, 0)
    assert sum(thread.name == "image" for thread in threading.enumerate()) == 2
    held.release.set()
    await waiting
    assert (held.most, held.total, after.total) == (2, 2, 1)


async def test_a_running_call_ends_at_its_next_check_when_its_caller_has_gone(threads: ImageThreads) -> None:
    started, gone, ended = (threading.Event() for _ in range(3))

    def work() -> None:
        started.set()
        gone.wait(SOON)
        threads.check()
        ended.set()

    running = asyncio.ensure_future(threads.run(work, deadline=later()))
    await asyncio.to_thread(started.wait, SOON)
    await cancelled(running)
    gone.set()
    await idle(threads)
    assert not ended.is_set()


async def test_memory_is_reserved_until_the_thread_ends(threads: ImageThreads) -> None:
    holder, other = Held(threads, 60), Held(threads, 60)
    gone = asyncio.ensure_future(threads.run(holder, deadline=later()))
    await holder.until_started()
    await cancelled(gone)
    other.release.set()
    waiting = asyncio.ensure_future(threads.run(other, deadline=later()))
    await idle(threads, 1)
    assert (holder.now, other.total) == (1, 0)
    holder.release.set()
    await waiting
    assert other.total == 1


async def test_a_call_that_finds_no_memory_lets_smaller_ones_pass(threads: ImageThreads) -> None:
    holder, large, small = Held(threads, 60), Held(threads, 2**40), Held(threads, 40)
    for released in (large, small):
        released.release.set()
    tasks = [asyncio.ensure_future(threads.run(holder, deadline=later()))]
    await holder.until_started()
    tasks.append(asyncio.ensure_future(threads.run(large, deadline=later())))
    await threads.run(small, deadline=later())
    assert (small.total, large.total) == (1, 0)
    holder.release.set()
    await asyncio.gather(*tasks)
    assert large.total == 1


async def test_a_call_that_was_overtaken_for_long_is_next(
    threads: ImageThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_threads, "_OVERTAKEN_SECONDS", 0.0)
    holder, large, small = Held(threads, 60), Held(threads, 100), Held(threads, 40)
    for released in (large, small):
        released.release.set()
    first = [asyncio.ensure_future(threads.run(holder, deadline=later()))]
    await holder.until_started()
    first.append(asyncio.ensure_future(threads.run(large, deadline=later())))
    await idle(threads, 1)
    last = asyncio.ensure_future(threads.run(small, deadline=later()))
    await idle(threads, 1)
    assert (large.total, small.total) == (0, 0)
    holder.release.set()
    await asyncio.gather(*first, last)
    assert (large.total, small.total) == (1, 1)


async def test_calls_share_the_memory_and_one_that_needs_all_of_it_runs_alone() -> None:
    threads = ImageThreads(8, max_bytes=100, max_calls=1000)
    most, now, lock = 0, 0, threading.Lock()

    def work(cost: int) -> None:
        nonlocal most, now
        threads.reserve(cost)
        with lock:
            now += min(cost, 100)
            most = max(most, now)
        with lock:
            now -= min(cost, 100)

    await threads.map(work, [(cost,) for cost in (30, 1000, 60, 50, 100, 1, 99) * 20], deadline=later())
    threads.close()
    assert 0 < most <= 100


async def test_a_call_whose_deadline_passes_in_the_queue_fails_at_once_and_does_not_run(
    threads: ImageThreads,
) -> None:
    held, late, big = Held(threads), Held(threads), Held(threads, 2**40)
    running = [asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(2)]
    await held.until_started(2)
    for call in (late, big):
        with pytest.raises(DeadlineExceeded):
            await threads.run(call, deadline=time.monotonic() + 0.01)
    assert held.now == 2
    held.release.set()
    await asyncio.gather(*running)
    await idle(threads)
    assert late.total == big.total == 0


async def test_rendering_goes_before_images_that_wait_to_be_decoded(threads: ImageThreads) -> None:
    held, order = Held(threads), list[str]()
    running = [asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(2)]
    await held.until_started(2)
    decoding = asyncio.ensure_future(threads.map(order.append, [("decode",)] * 4, deadline=later()))
    await asyncio.sleep(0)
    rendering = asyncio.ensure_future(threads.map(order.append, [("render",)] * 2, deadline=later(), urgent=True))
    await asyncio.sleep(0)
    held.release.set()
    await asyncio.gather(decoding, rendering, *running)
    assert order == ["render"] * 2 + ["decode"] * 4


async def test_the_first_failure_ends_the_other_calls_and_is_not_kept_in_a_cycle(threads: ImageThreads) -> None:
    class Pixels:
        pass

    ran: list[int] = []
    freed: list[weakref.ref[Pixels]] = []

    def work(index: int) -> None:
        pixels = Pixels()
        freed.append(weakref.ref(pixels))
        ran.append(index)
        raise ValueError(index)

    one = ImageThreads(1, max_bytes=1, max_calls=100)
    gc.disable()
    try:
        with pytest.raises(ValueError, match="0"):
            await one.map(work, [(index,) for index in range(50)], deadline=later())
        one.close()
        await asyncio.sleep(0)  # the event loop itself holds the call that woke this task
        assert ran == [0]
        assert freed[0]() is None
    finally:
        gc.enable()


async def test_more_calls_than_may_wait_are_refused(threads: ImageThreads) -> None:
    held = Held(threads)
    running = [asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(2)]
    await held.until_started(2)
    waiting = asyncio.ensure_future(threads.map(held, [()] * 100, deadline=later()))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refused:
        await threads.run(held, deadline=later())
    assert refused.value.retry_after is not None
    held.release.set()
    await asyncio.gather(waiting, *running)


async def test_closing_fails_what_waits_and_joins_the_threads() -> None:
    threads = ImageThreads(2, max_bytes=100, max_calls=100)
    held = Held(threads)
    running = [asyncio.ensure_future(threads.run(held, deadline=later())) for _ in range(3)]
    await held.until_started(2)
    closing = asyncio.ensure_future(asyncio.to_thread(threads.close))
    with pytest.raises(EngineStopped):
        await running[2]
    held.release.set()
    await asyncio.gather(closing, *running[:2])
    assert not any(thread.is_alive() for thread in threads._threads)
    with pytest.raises(EngineStopped):
        await threads.run(held, deadline=later())
