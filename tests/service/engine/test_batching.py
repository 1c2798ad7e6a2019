"""Batches form while the device is busy, and lanes are served round robin."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.engine import LaneLimits, LaneSnapshot
from service.engine.requests import EngineRequest
from service.engine.token_lanes import DecodeLane
from tests.service.engine.fakes import (
    Busy,
    FakeClock,
    FakeDevice,
    FakeObserver,
    Start,
    Submit,
    encode,
    generated,
    images,
    items,
    tokens,
)

pytestmark = pytest.mark.anyio


async def test_an_idle_device_takes_a_request_at_once(start: Start, device: FakeDevice, soon: float) -> None:
    engine = await start()
    encoded = await encode(engine, images(7), deadline=soon)
    decoded = await engine.decode(tokens(8), deadline=soon)
    made = await engine.generate(items(9), deadline=soon)
    np.testing.assert_array_equal(encoded.tokens, tokens(7))
    np.testing.assert_array_equal(decoded.images, images(8))
    np.testing.assert_array_equal(made.tokens, generated(9))
    assert encoded.tokens.dtype == made.tokens.dtype == np.int64
    assert decoded.images.dtype == np.uint8
    assert device.names == ["encode", "decode", "step", "step", "step"]


async def test_requests_queued_while_the_device_is_busy_form_one_batch(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=8)
    first = await busy(engine)
    others = await submit(*(encode(engine, images(value), deadline=soon) for value in range(1, 7)))
    device.release()
    results = await asyncio.gather(first, *others)
    assert device.rows_of("encode") == [(0,), (1, 2, 3, 4, 5, 6)]
    for value, result in enumerate(results):
        np.testing.assert_array_equal(result.tokens, tokens(value))


async def test_a_batch_has_at_most_max_batch_size_images(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=4)
    first = await busy(engine)
    others = await submit(*(encode(engine, images(value), deadline=soon) for value in range(1, 11)))
    device.release()
    await asyncio.gather(first, *others)
    assert device.rows_of("encode") == [(0,), (1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]


async def test_a_large_request_is_split_over_shared_batches_in_order(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=4)
    first = await busy(engine)
    small, large, last = await submit(
        engine.decode(tokens(1, 2), deadline=soon),
        engine.decode(tokens(3, 4, 5, 6, 7, 8, 9), deadline=soon),
        engine.decode(tokens(10), deadline=soon),
    )
    device.release()
    await first
    np.testing.assert_array_equal((await small).images, images(1, 2))
    np.testing.assert_array_equal((await large).images, images(3, 4, 5, 6, 7, 8, 9))
    np.testing.assert_array_equal((await last).images, images(10))
    assert device.rows_of("decode") == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]


async def test_requests_of_a_lane_are_answered_in_order(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    order: list[int] = []

    async def ask(*values: int) -> None:
        await encode(engine, images(*values), deadline=soon)
        order.append(values[0])

    first = await busy(engine)
    others = await submit(ask(1), ask(2, 3, 4), ask(5), ask(6, 7))
    device.release()
    await asyncio.gather(first, *others)
    assert order == [1, 2, 5, 6]


async def test_under_generate_load_encode_waits_at_most_one_step(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    first = await busy(engine)
    flood = await submit(*(engine.generate(items(seed, steps=4), deadline=soon) for seed in range(8)))
    device.let_through(1)
    device.wait_for_calls(2)
    late = await submit(*(encode(engine, images(value), deadline=soon) for value in (1, 2, 3)))
    device.release()
    await asyncio.gather(first, *flood, *late)
    assert device.names[:6] == ["encode", "step", "encode", "step", "encode", "step"]
    assert set(device.names[6:]) == {"step"}


async def test_under_encode_load_decode_waits_at_most_one_batch(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    first = await busy(engine)
    flood = await submit(*(encode(engine, images(1, 2), deadline=soon) for _ in range(6)))
    device.let_through(1)
    device.wait_for_calls(2)
    late = await submit(*(engine.decode(tokens(value, value), deadline=soon) for value in (1, 2)))
    device.release()
    await asyncio.gather(first, *flood, *late)
    assert device.names == ["encode", "encode", "decode", "encode", "decode", *["encode"] * 4]


async def test_full_lanes_are_served_round_robin(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=1)
    first = await busy(engine)
    flood = await submit(
        encode(engine, images(1, 2, 3), deadline=soon),
        engine.decode(tokens(1, 2, 3), deadline=soon),
        engine.generate(items(1, steps=3), deadline=soon),
    )
    device.release()
    await asyncio.gather(first, *flood)
    assert device.names == ["encode", *["decode", "step", "encode"] * 3]


async def test_one_thread_owns_the_device(start: Start, device: FakeDevice, soon: float) -> None:
    engine = await start()
    await asyncio.gather(
        *(encode(engine, images(value), deadline=soon) for value in range(5)),
        engine.decode(tokens(1), deadline=soon),
        engine.generate(items(1), deadline=soon),
    )
    assert len(device.threads) == 1


async def test_a_result_has_the_timing_of_its_request(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, clock: FakeClock, soon: float
) -> None:
    engine = await start(max_batch_size=4)
    first = await busy(engine)
    [large] = await submit(encode(engine, images(1, 2, 3, 4, 5), deadline=soon))
    clock.advance(3)
    device.release()
    await first
    timing = (await large).timing
    assert timing.queue_seconds == 3
    assert timing.batch_images == 4
    assert timing.device_seconds == pytest.approx(sum(observer.batch_seconds[1:]))
    assert observer.batches == [("encode", 1), ("encode", 4), ("encode", 1)]
    assert observer.waits == [("encode", 0.0)] + [("encode", 3.0)] * 5


async def test_a_snapshot_counts_queued_and_active_images(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    others = await submit(
        encode(engine, images(1, 2), deadline=soon),
        engine.decode(tokens(1, 2, 3), deadline=soon),
        engine.generate(items(1), deadline=soon),
    )
    assert engine.snapshot() == {
        "encode": LaneSnapshot(queued_images=2, queued_bytes=images(1, 2).nbytes, active_images=1),
        "decode": LaneSnapshot(queued_images=3, queued_bytes=tokens(1, 2, 3).nbytes, active_images=0),
        "generate": LaneSnapshot(queued_images=1, queued_bytes=0, active_images=0),
    }
    device.release()
    await asyncio.gather(first, *others)


async def test_a_batch_is_reported_with_the_callers_of_its_requests(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    observer.next_caller = "one"
    others = await submit(encode(engine, images(1, 2), deadline=soon))
    observer.next_caller = "other"
    others += await submit(encode(engine, images(3), deadline=soon))
    device.release()
    await asyncio.gather(first, *others)
    assert [sorted(map(str, callers)) for callers in observer.callers] == [[], ["one", "other"]]


async def test_a_decode_batch_is_limited_while_other_lanes_wait(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.lanes._SHARED_BATCH_SECONDS", 0.0)  # a limit below one image gives one
    engine = await start(max_batch_size=8)
    await engine.decode(tokens(0), deadline=soon)  # measures the cost of an image
    first = await busy(engine)
    others = await submit(
        engine.generate(items(9), deadline=soon),
        *(engine.decode(tokens(value), deadline=soon) for value in (1, 2, 3, 4)),
    )
    device.release()
    await asyncio.gather(first, *others)
    assert device.names[2:] == ["step", "decode", "step", "decode", "step", "decode"]
    assert device.rows_of("decode") == [(0,), (1,), (2,), (3, 4)]  # no limit once no other lane waits


async def test_the_limit_of_a_shared_batch_follows_the_cost_of_an_image(observer: FakeObserver) -> None:
    lane = DecodeLane(LaneLimits(max_batch_size=32), observer)
    future = asyncio.get_running_loop().create_future()
    request = EngineRequest(lane="decode", size=42, deadline=1e9, admitted_at=0.0, future=future)
    lane.admit(request, [np.zeros(2, np.int64)] * request.size, 16, wait=lambda: 0.0)
    assert len(lane.take(0.0, [], others_wait=False).tasks) == 32
    lane.record_cost(10, 0.125, now=0.0)
    assert len(lane.take(0.0, [], others_wait=True).tasks) == 8
    lane.record_cost(1, 100.0, now=0.0)
    assert len(lane.take(0.0, [], others_wait=True).tasks) == 1
    assert len(lane.take(0.0, [], others_wait=False).tasks) == 1  # the last


async def test_an_image_that_arrives_during_a_batch_waits_for_the_next_image_of_those_in_it(
    start: Start, device: FakeDevice, clock: FakeClock, submit: Submit, soon: float
) -> None:
    engine = await start(gathering_wait=1.0)
    device.hold()
    [first] = await submit(encode(engine, images(0), deadline=soon))
    device.wait_for_calls(1)
    [second] = await submit(encode(engine, images(1), deadline=soon))
    clock.advance(0.001)
    device.release()
    await first
    await asyncio.gather(second, encode(engine, images(2), deadline=soon))
    assert device.rows_of("encode") == [(0,), (1, 2)]
