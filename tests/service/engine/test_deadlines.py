"""Expired and cancelled requests."""

from __future__ import annotations

import asyncio

import pytest

from service.engine import DeadlineExceeded, LaneSnapshot
from tests.service.engine.fakes import Busy, FakeClock, FakeDevice, FakeObserver, Start, Submit, encode, images, items

pytestmark = pytest.mark.anyio

EMPTY = LaneSnapshot(queued_images=0, queued_bytes=0, active_images=0)


async def test_a_request_after_its_deadline_is_rejected(
    start: Start, device: FakeDevice, observer: FakeObserver, clock: FakeClock
) -> None:
    engine = await start()
    with pytest.raises(DeadlineExceeded) as late:
        await encode(engine, images(1), deadline=clock.now)
    assert (late.value.lane, late.value.stage) == ("encode", "admission")
    assert device.calls == []


async def test_a_request_that_expires_in_the_queue_never_reaches_the_device(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, clock: FakeClock, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    late, timely = await submit(
        encode(engine, images(1, 2, 3), deadline=clock.now + 100), encode(engine, images(4), deadline=soon)
    )
    clock.advance(100)
    device.release()
    with pytest.raises(DeadlineExceeded) as exceeded:
        await late
    assert exceeded.value.stage == "queue"
    await asyncio.gather(first, timely)
    assert device.rows_of("encode") == [(0,), (4,)]
    assert observer.abandonments == {("encode", "expired"): 3}


async def test_an_expired_request_fails_before_the_next_batch_runs(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    late, timely = await submit(
        encode(engine, images(1), deadline=clock.now + 100), encode(engine, images(2), deadline=soon)
    )
    clock.advance(100)
    device.let_through(1)
    with pytest.raises(DeadlineExceeded):
        await late
    device.release()
    await asyncio.gather(first, timely)


async def test_the_rest_of_a_large_request_that_expires_between_batches_is_dropped(
    start: Start, device: FakeDevice, submit: Submit, observer: FakeObserver, clock: FakeClock
) -> None:
    engine = await start(max_batch_size=2)
    device.hold()
    [large] = await submit(encode(engine, images(1, 2, 3, 4, 5), deadline=clock.now + 100))
    device.wait_for_calls(1)
    clock.advance(100)
    device.release()
    with pytest.raises(DeadlineExceeded) as exceeded:
        await large
    assert exceeded.value.stage == "device"
    assert device.rows_of("encode") == [(1, 2)]
    assert observer.abandonments == {("encode", "expired"): 3}


async def test_a_request_expires_while_the_device_is_busy(
    start: Start, busy: Busy, device: FakeDevice, observer: FakeObserver, clock: FakeClock
) -> None:
    engine = await start()
    first = await busy(engine)
    with pytest.raises(DeadlineExceeded) as exceeded:
        await encode(engine, images(1, 2), deadline=clock.now + 0.001)
    assert exceeded.value.stage == "queue"
    assert engine.snapshot()["encode"].queued_images == 0
    assert observer.abandonments == {("encode", "expired"): 2}
    device.release()
    await first
    assert device.rows_of("encode") == [(0,)]


async def test_a_result_after_the_deadline_is_discarded(
    start: Start, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = await start()
    device.hold()
    [late] = await submit(encode(engine, images(1), deadline=clock.now + 0.001))
    device.wait_for_calls(1)
    with pytest.raises(DeadlineExceeded) as exceeded:
        await late
    assert exceeded.value.stage == "device"
    device.release()
    await encode(engine, images(2), deadline=soon)
    assert device.rows_of("encode") == [(1,), (2,)]


async def test_a_failure_after_cancellation_is_discarded(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    device.poison = {1}
    [gone] = await submit(encode(engine, images(1), deadline=soon))
    device.wait_for_calls(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    device.release()
    await encode(engine, images(2), deadline=soon)


async def test_queued_images_of_a_cancelled_request_are_dropped_at_once(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_images=4)
    first = await busy(engine)
    gone, waiting = await submit(
        encode(engine, images(1, 2, 3), deadline=soon), encode(engine, images(4), deadline=soon)
    )
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert engine.snapshot()["encode"] == LaneSnapshot(queued_images=1, queued_bytes=images(4).nbytes, active_images=1)
    assert observer.abandonments == {("encode", "cancelled"): 3}
    others = await submit(encode(engine, images(5, 6, 7), deadline=soon))
    device.release()
    await asyncio.gather(first, waiting, *others)
    assert device.rows_of("encode") == [(0,), (4, 5, 6, 7)]


async def test_a_cancelled_request_does_not_affect_others_in_its_batch(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    gone, waiting = await submit(encode(engine, images(1), deadline=soon), encode(engine, images(2), deadline=soon))
    device.let_through(1)
    device.wait_for_calls(2)
    gone.cancel()
    device.release()
    assert (await waiting).tokens[0, 0] == 20
    await first
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_the_rows_of_a_cancelled_request_leave_between_steps(
    start: Start, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start()
    device.hold()
    gone, waiting = await submit(
        engine.generate(items(1, 2, steps=5), deadline=soon), engine.generate(items(3, steps=3), deadline=soon)
    )
    device.wait_for_calls(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    device.release()
    await waiting
    assert device.rows_of("step")[-2:] == [((3, 1),), ((3, 2),)]
    assert observer.abandonments == {("generate", "cancelled"): 2}


async def test_the_rows_of_an_expired_request_leave_between_steps(
    start: Start, submit: Submit, device: FakeDevice, observer: FakeObserver, clock: FakeClock, soon: float
) -> None:
    engine = await start()
    device.hold()
    late, waiting = await submit(
        engine.generate(items(1, 2, steps=5), deadline=clock.now + 100),
        engine.generate(items(3, steps=3), deadline=soon),
    )
    device.wait_for_calls(1)
    clock.advance(100)
    device.release()
    with pytest.raises(DeadlineExceeded) as exceeded:
        await late
    await waiting
    assert exceeded.value.stage == "device"
    assert device.rows_of("step")[1:] == [((3, 1),), ((3, 2),)]
    assert observer.abandonments == {("generate", "expired"): 2}


async def test_an_expired_row_makes_room_for_a_waiting_one(
    start: Start, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    engine = await start(max_batch_size=1)
    device.hold()
    late, waiting = await submit(
        engine.generate(items(1, steps=5), deadline=clock.now + 100), engine.generate(items(2, steps=2), deadline=soon)
    )
    device.wait_for_calls(1)
    clock.advance(100)
    device.release()
    with pytest.raises(DeadlineExceeded):
        await late
    await waiting
    assert device.rows_of("step") == [((1, 0),), ((2, 0),), ((2, 1),)]
