"""Encode tickets: room is reserved before decoding, and threads write images into rows of the next batch."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.engine import DeadlineExceeded, EngineStopped, LaneLimits, LaneSnapshot, QueueFull
from service.engine.encode_lane import EncodeLane
from service.engine.requests import EngineRequest
from tests.service.engine.fakes import (
    Build,
    Busy,
    FakeClock,
    FakeDevice,
    FakeObserver,
    Start,
    Submit,
    encode,
    images,
    tokens,
)

pytestmark = pytest.mark.anyio

IMAGE_BYTES = images(0).nbytes


async def test_images_written_in_any_order_have_results_in_request_order(start: Start, soon: float) -> None:
    engine = await start(max_batch_size=16)
    values = list(range(200))
    with await engine.open_encode(len(values), image_size=2, deadline=soon) as ticket, ThreadPoolExecutor(4) as threads:
        for value in reversed(values):
            threads.submit(ticket.put, value, images(value)[0])
        encoded = await ticket.result()
    np.testing.assert_array_equal(encoded.tokens, tokens(*values))


async def test_admission_is_refused_before_decoding(start: Start, observer: FakeObserver, soon: float) -> None:
    engine = await start(max_images=3)
    with await engine.open_encode(2, image_size=2, deadline=soon):
        with pytest.raises(QueueFull):
            await engine.open_encode(2, image_size=2, deadline=soon)
        assert engine.snapshot()["encode"] == LaneSnapshot(
            queued_images=2, queued_bytes=2 * IMAGE_BYTES, active_images=0
        )
    assert engine.snapshot()["encode"].queued_images == 0
    assert observer.rejections == {("encode", "images"): 1}


async def test_an_image_that_cannot_be_decoded_does_not_affect_others(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    [other] = await submit(encode(engine, images(5), deadline=soon))
    with await engine.open_encode(3, image_size=2, deadline=soon) as ticket:
        ticket.put(0, images(6)[0])  # the second image cannot be decoded
    ticket.put(2, images(7)[0])  # a decoding thread that runs late
    device.release()
    await first
    np.testing.assert_array_equal((await other).tokens, tokens(5))
    assert device.rows_of("encode") == [(0,), (5,)]
    assert observer.abandonments == {("encode", "cancelled"): 1}


@pytest.mark.parametrize("pixels", [np.zeros((3, 2, 3), np.uint8), np.zeros((2, 2, 3), np.float32)])
async def test_pixels_of_a_wrong_shape_or_type_raise_value_error(start: Start, soon: float, pixels: np.ndarray) -> None:
    engine = await start()
    ticket = await engine.open_encode(1, image_size=2, deadline=soon)
    with ticket, pytest.raises(ValueError, match=r"uint8 \[2, 2, 3\] was announced"):
        ticket.put(0, pixels)


async def test_a_request_whose_images_are_not_decoded_in_time_expires(start: Start, clock: FakeClock) -> None:
    engine = await start()
    with await engine.open_encode(2, image_size=2, deadline=clock.now + 0.001) as ticket:
        ticket.put(0, images(1)[0])
        with pytest.raises(DeadlineExceeded) as late:
            await ticket.result()
    assert late.value.lane == "encode"
    assert engine.snapshot()["encode"].queued_images == 0


async def test_a_drain_waits_for_images_that_are_still_being_decoded(start: Start, submit: Submit, soon: float) -> None:
    engine = await start()
    with await engine.open_encode(1, image_size=2, deadline=soon) as ticket:
        [stopping] = await submit(engine.stop(10))
        ticket.put(0, images(3)[0])
        np.testing.assert_array_equal((await ticket.result()).tokens, tokens(3))
    await stopping
    assert engine.state.name == "stopped"


async def test_requests_still_decoding_fail_when_the_drain_is_over(start: Start, soon: float) -> None:
    engine = await start()
    with await engine.open_encode(1, image_size=2, deadline=soon) as ticket:
        await engine.stop(0)
        ticket.put(0, images(3)[0])
        with pytest.raises(EngineStopped):
            await ticket.result()


async def test_block_memory_is_bounded_under_cancellation(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=4, max_images=8)
    first = await busy(engine)
    for round_ in range(50):
        waiting = await submit(*(encode(engine, images(round_, value), deadline=soon) for value in range(4)))
        for request in waiting[round_ % 3 : 3]:
            request.cancel()
        await asyncio.sleep(0)
        for request in waiting:
            request.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    last = await submit(*(encode(engine, images(value), deadline=soon) for value in range(8)))
    assert engine._queues.encode.pool.size <= 2 + 1 + 1  # two queued, one being filled, one on the device
    device.release()
    await first
    for value, request in enumerate(last):
        np.testing.assert_array_equal((await request).tokens, tokens(value))


async def test_an_image_waits_for_a_full_batch_at_most_max_wait(
    build: Build, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = build(max_batch_size=3, max_wait=50.0)
    engine.start()
    await engine.ready()
    waiting = await submit(encode(engine, images(1), deadline=soon))
    clock.advance(30)
    waiting += await submit(encode(engine, images(2), deadline=soon))
    assert device.calls == []
    clock.advance(20)  # the first has waited for fifty, the second for twenty
    await asyncio.gather(*waiting)
    await asyncio.gather(*(await submit(*(encode(engine, images(value), deadline=soon) for value in (3, 4, 5)))))
    assert device.rows_of("encode") == [(1, 2), (3, 4, 5)]


async def test_a_row_that_is_being_written_is_not_reused(observer: FakeObserver) -> None:
    lane = EncodeLane(LaneLimits(max_batch_size=1), observer, shared=False)
    loop = asyncio.get_running_loop()
    gone, other, third = (
        EngineRequest(lane="encode", size=1, deadline=9.0, admitted_at=0.0, future=loop.create_future())
        for _ in range(3)
    )
    for request in (gone, other, third):
        lane.admit(request, [None], IMAGE_BYTES, wait=lambda: 0.0)
    block = lane.claim(gone.tasks[0], (2, 2, 3), 0.0)
    gone.abandoned = True
    lane.discard(gone)
    assert lane.claim(other.tasks[0], (2, 2, 3), 0.0) is not block
    lane.written(gone.tasks[0])
    assert lane.claim(third.tasks[0], (2, 2, 3), 0.0) is block


async def test_an_idle_worker_waits_for_images_being_decoded_for_as_long_as_an_image_takes(
    start: Start, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = await start(gathering_wait=1.0)
    await encode(engine, images(0), deadline=soon)  # alone: it waits for nothing, and tells how long an image takes
    with (
        await engine.open_encode(1, image_size=2, deadline=soon) as one,
        await engine.open_encode(1, image_size=2, deadline=soon) as two,
    ):
        one.put(0, images(1)[0])
        for value in range(2):  # another lane's turns, between which the image would be taken
            await engine.decode(tokens(value), deadline=soon)
        two.put(0, images(2)[0])
        await asyncio.gather(one.result(), two.result())
    assert device.rows_of("encode") == [(0,), (1, 2)]
    with (
        await engine.open_encode(1, image_size=2, deadline=soon) as one,
        await engine.open_encode(1, image_size=2, deadline=soon) as never,
    ):
        one.put(0, images(3)[0])
        clock.advance(1.0)
        await one.result()
        never.__exit__()
        await encode(engine, images(4), deadline=soon)
    assert device.rows_of("encode")[2:] == [(3,), (4,)]
