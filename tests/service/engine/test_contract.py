"""The engine's contract besides results: shapes, limits, one call into the event loop, no retained memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.engine import DeadlineExceeded, EngineStopped, LaneLimits, QueueFull
from service.engine.protocol import LaneName
from service.engine.queues import Queues
from tests.service.engine.fakes import (
    PATIENCE,
    Busy,
    FakeClock,
    FakeDevice,
    FakeObserver,
    Start,
    Submit,
    encode,
    images,
    inline_engine,
    items,
    latents,
    tokens,
)

pytestmark = pytest.mark.anyio

IMAGE_BYTES = images(0).nbytes


@pytest.mark.parametrize("name", ["max_batch_size", "max_images", "max_bytes"])
def test_a_limit_is_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        LaneLimits(**{name: 0})


async def test_each_lane_can_have_limits_of_its_own(device: FakeDevice, clock: FakeClock, soon: float) -> None:
    limits = {"encode": LaneLimits(max_batch_size=2), "decode": LaneLimits(max_batch_size=3), "generate": LaneLimits()}
    engine = inline_engine(lambda: device, limits=limits, clock=clock)
    engine.start()
    await engine.ready()
    encoded = await encode(engine, images(*range(6)), deadline=soon)
    decoded = await engine.decode(tokens(*range(6)), deadline=soon)
    assert (encoded.timing.batch_images, decoded.timing.batch_images) == (2, 3)
    await engine.stop(PATIENCE)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_batches_are_as_large_as_the_largest_limit_of_a_connected_worker(order: str) -> None:
    limits: dict[str, dict[LaneName, int]] = {"a": {"encode": 8, "decode": 64}, "b": {"encode": 16}}
    queues = Queues(LaneLimits(), FakeObserver(), FakeClock(), shared=False)

    def sizes() -> tuple[int, int]:
        return queues.lanes["encode"].batch_size, queues.lanes["decode"].batch_size

    with queues.wake:
        for name in order:
            queues.add_worker(name, limits[name])
        assert sizes() == (16, 64)
        queues.remove_worker("b")
        assert sizes() == (8, 64)
        queues.remove_worker("a")
        assert sizes() == (8, 64)  # the limits of the last worker, until the next one connects


async def test_a_request_that_can_never_fit_gets_no_retry_after_even_if_the_queue_is_full(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_images=4, max_bytes=3 * IMAGE_BYTES)
    await busy(engine)
    [waiting] = await submit(encode(engine, images(1), deadline=soon))
    with pytest.raises(QueueFull) as refused:
        await encode(engine, images(1, 2, 3, 4), deadline=soon)
    assert (refused.value.limit, refused.value.retry_after) == (3 * IMAGE_BYTES, None)
    device.release()
    await waiting


async def test_a_request_after_its_deadline_is_counted_as_rejected(
    start: Start, observer: FakeObserver, clock: FakeClock
) -> None:
    engine = await start()
    with pytest.raises(DeadlineExceeded):
        await encode(engine, images(1), deadline=clock.now)
    assert observer.rejections == {("encode", "deadline"): 1}


@pytest.mark.parametrize("batch", [np.zeros(8, np.int64), np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float32)])
async def test_tokens_of_a_wrong_shape_or_type_raise_value_error(start: Start, soon: float, batch: Any) -> None:
    engine = await start()
    with pytest.raises(ValueError, match=r"tokens are .* int64 \[n, K\] or float32 \[n, K, C\] expected"):
        await engine.decode(batch, deadline=soon)


async def test_latents_are_computed_in_batches_of_their_own(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=4)
    await busy(engine)
    waiting = await submit(
        *(encode(engine, images(value), deadline=soon, latents=value % 2 == 0) for value in range(1, 7)),
        engine.decode(latents(7, 8), deadline=soon),
    )
    device.release()
    *encoded, decoded = [await task for task in waiting]
    for value, result in enumerate(encoded, 1):
        expected = latents(value) if value % 2 == 0 else tokens(value)
        assert result.tokens.dtype == expected.dtype
        assert (result.tokens == expected).all()
    assert (decoded.images == images(7, 8)).all()
    assert device.rows_of("latents") == [(2, 4, 6)]
    assert device.rows_of("encode")[1:] == [(1, 3, 5)]


async def test_latents_of_a_failed_batch_are_computed_again_one_by_one(
    start: Start, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.errors.append(ValueError("once"))
    result = await encode(engine, images(1, 2), deadline=soon, latents=True)
    assert (result.tokens == latents(1, 2)).all()
    assert device.rows_of("latents") == [(1, 2), (1,), (2,)]


async def test_steps_and_results_of_a_batch_reach_the_event_loop_in_one_call(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    told: list[tuple[int, int]] = []
    waiters = [await busy(engine)]
    waiters += await submit(
        *(encode(engine, images(value), deadline=soon) for value in range(1, 9)),
        engine.generate(
            items(1, 2, steps=2), deadline=soon, on_step=lambda index, step, *_: told.append((index, step))
        ),
    )
    loop, calls = asyncio.get_running_loop(), []
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counted(callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.Handle:
        if threading.current_thread().name == "device":
            calls.append(callback)
        return call_soon_threadsafe(callback, *args, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    device.release()
    await asyncio.gather(*waiters)
    assert device.names == ["encode", "step", "encode", "step"]
    assert len(calls) == 4
    assert told == [(0, 1), (1, 1), (0, 2), (1, 2)]


async def test_a_cancelled_stop_fails_every_request(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice
) -> None:
    engine = await start()
    waiter = await busy(engine)
    [stopping] = await submit(engine.stop(PATIENCE))
    stopping.cancel()
    with pytest.raises(EngineStopped):
        await waiter
    assert device.is_held
    device.release()


async def test_images_of_a_request_that_expired_are_freed_without_the_garbage_collector(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    batch = images(1, 2)
    freed = weakref.ref(batch)

    async def expire(request: Any) -> None:
        with pytest.raises(DeadlineExceeded):
            await request

    gc.disable()
    try:
        [late] = await submit(expire(encode(engine, batch, deadline=clock.now + 50)))
        del batch
        clock.advance(50)
        device.release()
        await asyncio.gather(first, late)
        del late
        await engine.decode(tokens(1), deadline=soon)
        assert freed() is None
    finally:
        gc.enable()
