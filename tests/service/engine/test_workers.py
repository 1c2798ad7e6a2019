"""Remote workers: connecting, crashing and reconnecting without losing requests."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engine import DeadlineExceeded, EngineStopped, LaneSnapshot, QueueFull, WorkerCrashed
from service.engine.wire import Channel, DeviceReady
from service.engine.worker import DeviceServer
from tests.service.engine.fakes import (
    PATIENCE,
    Build,
    Busy,
    DeviceLost,
    FakeClock,
    FakeDevice,
    FakeObserver,
    Pool,
    Start,
    Submit,
    encode,
    generated,
    images,
    items,
    remote_engine,
    tokens,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("form", ["remote"], indirect=True)]


async def test_the_batch_of_a_dead_worker_is_retried_unbatched(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.fatal_once = {2}
    first = await busy(engine)
    waiting = await submit(*(encode(engine, images(value), deadline=soon) for value in (1, 2, 3)))
    device.release()
    await first
    for value, result in zip((1, 2, 3), await asyncio.gather(*waiting), strict=True):
        np.testing.assert_array_equal(result.tokens, tokens(value))
    assert device.rows_of("encode") == [(0,), (1, 2, 3), (1,), (2,), (3,)]


async def test_an_image_that_crashes_two_workers_fails_only_its_request(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.fatal = {2}
    first = await busy(engine)
    good, poison, other = await submit(
        encode(engine, images(1), deadline=soon),
        encode(engine, images(2), deadline=soon),
        encode(engine, images(3), deadline=soon),
    )
    device.release()
    with pytest.raises(WorkerCrashed):
        await poison
    await first
    np.testing.assert_array_equal((await good).tokens, tokens(1))
    np.testing.assert_array_equal((await other).tokens, tokens(3))
    assert sum(2 in rows for rows in device.rows_of("encode")) == 2


@pytest.mark.parametrize("lane", ["decode", "generate"])
async def test_decode_and_generate_batches_are_retried_too(
    start: Start, device: FakeDevice, soon: float, lane: str
) -> None:
    engine = await start()
    device.fatal_once = {2}
    if lane == "decode":
        np.testing.assert_array_equal((await engine.decode(tokens(1, 2), deadline=soon)).images, images(1, 2))
    else:
        np.testing.assert_array_equal((await engine.generate(items(1, 2), deadline=soon)).tokens, generated(1, 2))


async def test_a_row_resumes_at_the_step_in_which_its_worker_died(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    [made] = await submit(engine.generate(items(5, steps=4), deadline=soon))
    device.let_through(2)
    device.wait_for_calls(3)
    device.fatal_once = {5}
    device.release()
    np.testing.assert_array_equal((await made).tokens, generated(5, steps=4))
    assert [rows[0][1] for rows in device.rows_of("step")] == [0, 1, 2, 2, 3]


async def test_a_full_batch_is_prefetched_and_a_partial_one_grows(
    build: Build, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = build(depth=2, max_batch_size=2)
    engine.start()
    await engine.ready()
    device.hold()
    waiters = await submit(*(encode(engine, images(value, value), deadline=soon) for value in (1, 2, 3)))
    device.wait_for_calls(1)
    waiters += await submit(encode(engine, images(4), deadline=soon))
    device.let_through(1)
    device.wait_for_calls(2)
    await waiters[0]
    device.let_through(1)
    device.wait_for_calls(3)
    await waiters[1]
    assert engine.snapshot()["encode"].queued_images == 1
    waiters += await submit(encode(engine, images(5), deadline=soon))
    device.release()
    await asyncio.gather(*waiters)
    assert device.rows_of("encode") == [(1, 1), (2, 2), (3, 3), (4, 5)]


async def test_a_prefetched_batch_counts_as_queued(
    build: Build, submit: Submit, device: FakeDevice, clock: FakeClock, observer: FakeObserver, soon: float
) -> None:
    engine = build(depth=2, max_batch_size=2, max_images=4)
    engine.start()
    await engine.ready()
    device.hold()
    waiters = await submit(encode(engine, images(1, 1), deadline=soon))
    device.wait_for_calls(1)
    waiters += await submit(*(encode(engine, images(value, value), deadline=soon) for value in (2, 3)))
    # Regardless of whether the worker has received the second batch.
    two = LaneSnapshot(queued_images=4, queued_bytes=images(2, 2, 3, 3).nbytes, active_images=2)
    assert engine.snapshot()["encode"] == two
    with pytest.raises(QueueFull):
        await encode(engine, images(4), deadline=soon)
    clock.advance(10)
    device.let_through(1)
    device.wait_for_calls(2)
    await waiters[0]
    assert engine.snapshot()["encode"] == replace(two, queued_images=2, queued_bytes=images(3, 3).nbytes)
    assert observer.waits == [("encode", 0.0), ("encode", 0.0), ("encode", 10.0), ("encode", 10.0)]
    clock.advance(10)
    device.release()
    encoded = await asyncio.gather(*waiters)
    assert [each.timing.queue_seconds for each in encoded] == [0.0, 10.0, 20.0]


async def test_a_prefetched_batch_is_not_blamed_for_a_crash(
    build: Build, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = build(depth=2, max_batch_size=1)
    engine.start()
    await engine.ready()
    device.hold()
    device.fatal_once = {2, 4}
    waiters = await submit(*(encode(engine, images(value), deadline=soon) for value in (1, 2, 3, 4, 5)))
    device.wait_for_calls(1)
    device.release()
    for value, waiter in enumerate(waiters, start=1):
        np.testing.assert_array_equal((await waiter).tokens, tokens(value))


async def test_a_prefetched_batch_that_expires_never_reaches_the_device(
    build: Build, submit: Submit, device: FakeDevice, clock: FakeClock, observer: FakeObserver, soon: float
) -> None:
    engine = build(depth=2, max_batch_size=1)
    engine.start()
    await engine.ready()
    device.hold()
    first, second = await submit(*(encode(engine, images(value), deadline=soon) for value in (1, 2)))
    late = (await submit(encode(engine, images(3), deadline=clock.now + 100)))[0]
    device.wait_for_calls(1)
    device.let_through(1)
    await first
    device.wait_for_calls(2)
    clock.advance(100)
    device.release()
    await second
    with pytest.raises(DeadlineExceeded):
        await late
    assert device.rows_of("encode") == [(1,), (2,)]
    assert observer.abandonments == {("encode", "expired"): 1}


async def test_without_a_worker_new_requests_are_rejected_and_admitted_ones_wait(
    build: Build, submit: Submit, device: FakeDevice, soon: float
) -> None:
    may_open = threading.Event()
    may_open.set()

    def factory() -> FakeDevice:
        assert may_open.wait(PATIENCE)
        return device

    engine = build(factory)
    engine.start()
    await engine.ready()
    device.hold()
    [waiting] = await submit(encode(engine, images(1), deadline=soon))
    device.wait_for_calls(1)
    may_open.clear()
    device.fatal_once = {1}
    device.release()
    await until(lambda: not engine.state.is_ready)
    assert engine.state.name == "starting"
    assert "the worker has gone" in str(engine.state.reason)
    with pytest.raises(EngineStopped, match="the worker has gone"):
        await encode(engine, images(2), deadline=soon)
    may_open.set()
    np.testing.assert_array_equal((await waiting).tokens, tokens(1))
    assert engine.state.is_ready


async def test_the_death_of_an_idle_worker_is_detected(build: Build, device: FakeDevice) -> None:
    engine = build()
    engine.start()
    await engine.ready()
    build.workers[0].stop()  # type: ignore[attr-defined]
    await until(lambda: not engine.state.is_ready)


async def test_a_worker_that_cannot_open_its_device_reports_the_reason(
    build: Build, device: FakeDevice, soon: float
) -> None:
    works = threading.Event()

    def factory() -> FakeDevice:
        if not works.is_set():
            raise DeviceLost("no such weights")
        return device

    engine = build(factory)
    engine.start()
    await until(lambda: engine.state.name == "failed")
    assert "the device cannot be opened: no such weights" in str(engine.state.reason)
    with pytest.raises(EngineStopped, match="no such weights"):
        await encode(engine, images(1), deadline=soon)
    works.set()
    await until(lambda: engine.state.is_ready)
    np.testing.assert_array_equal((await encode(engine, images(1), deadline=soon)).tokens, tokens(1))


async def test_two_workers_share_the_queue(pool: Pool, submit: Submit, soon: float) -> None:
    engine, devices, _ = await pool(2, max_batch_size=2)
    for device in devices:
        device.hold()
    waiters = await submit(
        encode(engine, images(1, 2, 3, 4), deadline=soon), engine.generate(items(5, 6), deadline=soon)
    )
    for device in devices:
        device.wait_for_calls(1)
    assert engine.snapshot()["encode"].active_images + engine.snapshot()["generate"].active_images == 4
    for device in devices:
        device.release()
    encoded, made = await asyncio.gather(*waiters)
    np.testing.assert_array_equal(encoded.tokens, tokens(1, 2, 3, 4))
    np.testing.assert_array_equal(made.tokens, generated(5, 6))


async def test_the_engine_stays_ready_while_one_of_two_workers_is_left(pool: Pool, submit: Submit, soon: float) -> None:
    engine, devices, workers = await pool(2, max_batch_size=1)
    for device in devices:
        device.hold()
    waiters = await submit(*(encode(engine, images(value), deadline=soon) for value in (1, 2, 3)))
    for device in devices:
        device.wait_for_calls(1)
    workers[0].stays_down = True
    devices[0].lose_next = True
    devices[0].release()
    await until(lambda: len(engine._queues.up) == 1)
    assert engine.state.is_ready
    devices[1].release()
    for value, waiter in enumerate(waiters, start=1):
        np.testing.assert_array_equal((await waiter).tokens, tokens(value))


async def test_a_front_end_that_leaves_does_not_affect_the_other_on_its_worker(
    build: Build, busy: Busy, submit: Submit, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    staying = build()
    staying.start()
    await staying.ready()
    address = str(build.workers[0].address)  # type: ignore[attr-defined]
    leaving = remote_engine({"fake": address}, clock=clock, depth=1)
    leaving.start()
    await leaving.ready()
    first = await busy(staying)
    [gone] = await submit(encode(leaving, images(1), deadline=soon))
    await until(lambda: leaving.snapshot()["encode"].active_images == 1)
    await leaving.stop(0)
    with pytest.raises(EngineStopped):
        await gone
    device.release()
    await first
    np.testing.assert_array_equal((await encode(staying, images(2), deadline=soon)).tokens, tokens(2))


async def test_answers_of_any_size_are_complete(start: Start, soon: float) -> None:
    engine = await start(max_batch_size=64)
    for count in (1, 3, 2, 40, 1, 64, 7):
        values = tuple(range(count))
        np.testing.assert_array_equal((await engine.decode(tokens(*values), deadline=soon)).images, images(*values))


async def test_a_job_that_was_never_started_is_never_blamed_for_a_crash(
    device: FakeDevice, clock: FakeClock, tmp_path: Path, form: str, soon: float
) -> None:
    address = tmp_path / form
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(address))
    listener.listen()
    server = DeviceServer(listener, lambda: device, clock=clock)

    def die_three_times() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            channel = Channel(connection)
            channel.send(DeviceReady(None))
            for _ in ("counter", "job"):
                for descriptor in channel.receive()[1]:
                    os.close(descriptor)
            channel.close()
        server.run()

    thread = threading.Thread(target=die_three_times, daemon=True)
    thread.start()
    engine = remote_engine({"fake": str(address)}, clock=clock)
    engine.start()
    await engine.ready()
    np.testing.assert_array_equal((await encode(engine, images(1), deadline=soon)).tokens, tokens(1))
    assert device.rows_of("encode") == [(1,)]
    await engine.stop(PATIENCE)
    server.stop()
    thread.join(PATIENCE)
