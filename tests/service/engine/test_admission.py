"""Admission: limits of the queues and rejections."""

from __future__ import annotations

import asyncio

import pytest

from service.engine import EngineStopped, QueueFull
from tests.service.engine.fakes import (
    Build,
    Busy,
    FakeDevice,
    FakeObserver,
    Start,
    Submit,
    encode,
    images,
    items,
    tokens,
)

pytestmark = pytest.mark.anyio

IMAGE_BYTES = images(0).nbytes


async def test_a_full_queue_rejects_the_next_image(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_images=3)
    first = await busy(engine)
    others = await submit(encode(engine, images(1, 2), deadline=soon), encode(engine, images(3), deadline=soon))
    with pytest.raises(QueueFull, match="encode queue is full") as refused:
        await encode(engine, images(4), deadline=soon)
    assert refused.value.lane == "encode"
    assert refused.value.retry_after is not None
    assert observer.rejections == {("encode", "images"): 1}
    device.release()
    await asyncio.gather(first, *others)


async def test_requests_wait_for_room_in_order_and_for_no_longer_than_allowed(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_images=2, max_batch_size=1, admission_wait=60.0)
    first = await busy(engine)
    full = await submit(encode(engine, images(1), deadline=soon), encode(engine, images(2), deadline=soon))
    waiting = await submit(*(encode(engine, images(value), deadline=soon) for value in (3, 4, 5)))
    with pytest.raises(QueueFull):  # half of its time is over
        await engine.wait_for_room("encode", deadline=soon - 3600 + 0.02)
    assert not any(task.done() for task in waiting)
    assert engine.snapshot()["encode"].queued_images == 2
    device.release()
    await asyncio.gather(first, *full, *waiting)
    assert device.rows_of("encode")[1:] == [(1,), (2,), (3,), (4,), (5,)]
    assert observer.rejections == {("encode", "images"): 1}


async def test_a_request_larger_than_the_queue_does_not_wait_for_room(start: Start, soon: float) -> None:
    engine = await start(max_images=2, admission_wait=60.0)
    with pytest.raises(QueueFull) as refused:
        await encode(engine, images(1, 2, 3), deadline=soon)
    assert refused.value.retry_after is None


async def test_a_full_queue_rejects_by_bytes(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_bytes=3 * IMAGE_BYTES)
    first = await busy(engine)
    others = await submit(encode(engine, images(1, 2, 3), deadline=soon))
    with pytest.raises(QueueFull, match="bytes"):
        await encode(engine, images(4), deadline=soon)
    assert observer.rejections == {("encode", "bytes"): 1}
    device.release()
    await asyncio.gather(first, *others)


async def test_lanes_have_their_own_limits(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_images=2)
    first = await busy(engine)
    others = await submit(
        encode(engine, images(1, 2), deadline=soon),
        engine.decode(tokens(1, 2), deadline=soon),
        engine.generate(items(1, 2), deadline=soon),
    )
    with pytest.raises(QueueFull):
        await engine.generate(items(3), deadline=soon)
    device.release()
    await asyncio.gather(first, *others)


@pytest.mark.parametrize("limits", [{"max_images": 2}, {"max_bytes": 3 * IMAGE_BYTES - 1}])
async def test_a_request_larger_than_the_queue_gets_no_retry_after(
    start: Start, observer: FakeObserver, soon: float, limits: dict[str, int]
) -> None:
    engine = await start(**limits)
    with pytest.raises(QueueFull, match="the encode queue holds") as refused:
        await encode(engine, images(1, 2, 3), deadline=soon)
    assert refused.value.retry_after is None
    assert observer.rejections == {("encode", "too_large"): 1}


async def test_a_rejection_estimates_retry_after_from_measured_batches(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_images=4)
    await encode(engine, images(1, 2), deadline=soon)
    device.calls.clear()
    first = await busy(engine)
    others = await submit(encode(engine, images(1, 2, 3), deadline=soon))
    with pytest.raises(QueueFull) as refused:
        await encode(engine, images(4, 5), deadline=soon)
    assert refused.value.retry_after == pytest.approx(3 * observer.batch_seconds[0] / 2)
    device.release()
    await asyncio.gather(first, *others)


async def test_the_cost_of_a_generated_image_includes_all_steps(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_images=2)
    await engine.generate(items(1, 2, steps=5), deadline=soon)
    device.calls.clear()
    first = await busy(engine)
    others = await submit(engine.generate(items(3), deadline=soon))
    with pytest.raises(QueueFull) as refused:
        await engine.generate(items(4, 5), deadline=soon)
    assert refused.value.retry_after == pytest.approx(sum(observer.batch_seconds) / 2)
    device.release()
    await asyncio.gather(first, *others)


async def test_a_rejected_request_leaves_nothing_in_the_queue(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_images=3)
    first = await busy(engine)
    others = await submit(encode(engine, images(1, 2), deadline=soon))
    before = engine.snapshot()
    with pytest.raises(QueueFull):
        await encode(engine, images(3, 4), deadline=soon)
    assert engine.snapshot() == before
    others += await submit(encode(engine, images(5), deadline=soon))
    device.release()
    await asyncio.gather(first, *others)
    assert device.rows_of("encode") == [(0,), (1, 2, 5)]


async def test_room_is_free_again_when_the_device_has_taken_a_batch(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_images=2)
    first = await busy(engine)
    others = await submit(encode(engine, images(1, 2), deadline=soon))
    device.let_through(1)
    device.wait_for_calls(2)
    others += await submit(encode(engine, images(3, 4), deadline=soon))
    device.release()
    await asyncio.gather(first, *others)


async def test_a_request_without_images_raises_value_error(start: Start, soon: float) -> None:
    engine = await start()
    with pytest.raises(ValueError, match="at least one image"):
        await encode(engine, images(), deadline=soon)
    with pytest.raises(ValueError, match="at least one image"):
        await engine.generate([], deadline=soon)


async def test_an_engine_that_is_not_started_rejects_requests(
    build: Build, observer: FakeObserver, soon: float
) -> None:
    engine = build()
    with pytest.raises(EngineStopped, match="not started"):
        await encode(engine, images(1), deadline=soon)
    assert observer.rejections == {("encode", "stopped"): 1}
