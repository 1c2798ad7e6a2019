"""Start, readiness, drain and stop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.engine import DeviceFailed, EngineStopped
from tests.service.engine.fakes import (
    PATIENCE,
    Build,
    Busy,
    FakeDevice,
    FakeObserver,
    Start,
    Submit,
    encode,
    images,
    inline_engine,
    items,
    tokens,
)

pytestmark = pytest.mark.anyio


async def test_an_engine_is_ready_when_its_device_is_open(build: Build, device: FakeDevice, soon: float) -> None:
    may_open = threading.Event()

    def factory() -> FakeDevice:
        assert may_open.wait(PATIENCE)
        return device

    engine = build(factory)
    assert (engine.state.name, engine.state.reason) == ("starting", "not started")
    engine.start()
    assert engine.state.name == "starting"
    with pytest.raises(EngineStopped, match="being loaded"):
        await encode(engine, images(1), deadline=soon)
    may_open.set()
    await engine.ready()
    assert engine.state.is_ready
    assert engine.state.reason is None


async def test_stop_finishes_admitted_requests_and_rejects_new_ones(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    first = await busy(engine)
    accepted = await submit(
        encode(engine, images(1, 2, 3), deadline=soon),
        engine.decode(tokens(4), deadline=soon),
        engine.generate(items(5, 6, 7), deadline=soon),
    )
    [stopping] = await submit(engine.stop(PATIENCE))
    assert engine.state.name == "draining"
    with pytest.raises(EngineStopped, match="shutting down"):
        await encode(engine, images(8), deadline=soon)
    assert observer.rejections == {("encode", "stopped"): 1}
    device.release()
    await stopping
    assert engine.state.name == "stopped"
    await asyncio.gather(first, *accepted)


async def test_requests_that_outlast_the_drain_fail_while_the_device_is_busy(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    first = await busy(engine)
    queued = await submit(
        encode(engine, images(1), deadline=soon),
        engine.decode(tokens(2), deadline=soon),
        engine.generate(items(3), deadline=soon),
    )
    await engine.stop(0)
    outcomes = await asyncio.gather(first, *queued, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 4
    assert device.is_held


async def test_rows_that_outlast_the_drain_fail_while_the_device_is_busy(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    waiters = await submit(*(engine.generate(items(seed), deadline=soon) for seed in (1, 2)))
    device.wait_for_calls(1)
    await engine.stop(0)
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 2
    assert device.is_held
    device.release()
    await engine.stop(PATIENCE)
    assert not device.rows_of("step")[1:]


async def test_a_device_failure_during_the_drain_is_reported(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.poison = {1}
    device.hold()
    [bad] = await submit(encode(engine, images(1), deadline=soon))
    [stopping] = await submit(engine.stop(PATIENCE))
    device.release()
    await stopping
    with pytest.raises(DeviceFailed):
        await bad


async def test_an_engine_that_was_never_started_stops(build: Build, soon: float) -> None:
    engine = build()
    await engine.stop(PATIENCE)
    assert engine.state.name == "stopped"
    with pytest.raises(EngineStopped):
        await engine.ready()
    with pytest.raises(EngineStopped, match="shut down"):
        await encode(engine, images(1), deadline=soon)


async def test_an_engine_stops_twice(start: Start) -> None:
    engine = await start()
    await asyncio.gather(engine.stop(PATIENCE), engine.stop(PATIENCE))
    await engine.stop(PATIENCE)
    assert engine.state.name == "stopped"


async def test_an_engine_starts_only_once(start: Start, build: Build, soon: float) -> None:
    engine = await start()
    with pytest.raises(RuntimeError, match="started once; this one is ready"):
        engine.start()
    assert engine.state.is_ready
    stopped = build()
    await stopped.stop(0)
    with pytest.raises(RuntimeError, match="this one is stopped"):
        stopped.start()


async def test_an_engine_stops_while_its_device_is_being_opened(
    build: Build, submit: Submit, device: FakeDevice
) -> None:
    may_open = threading.Event()

    def factory() -> FakeDevice:
        assert may_open.wait(PATIENCE)
        return device

    engine = build(factory)
    engine.start()
    [ready] = await submit(engine.ready())
    await engine.stop(0)
    with pytest.raises(EngineStopped, match="shut down"):
        await ready
    may_open.set()
    await engine.stop(PATIENCE)
    assert engine.state.name == "stopped"
    assert device.calls == []


def test_a_device_that_returns_after_the_event_loop_has_closed_ends_its_thread(
    device: FakeDevice,
) -> None:
    engine = inline_engine(lambda: device)

    async def leave_it_behind() -> None:
        engine.start()
        await engine.ready()
        device.hold()
        waiter = asyncio.create_task(encode(engine, images(1), deadline=time.monotonic() + 3600))
        await asyncio.sleep(0)
        device.wait_for_calls(1)
        await engine.stop(0)
        with pytest.raises(EngineStopped):
            await waiter

    asyncio.run(leave_it_behind())
    [thread] = [thread for thread in threading.enumerate() if thread.name == "device"]
    device.release()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert engine.state.name == "stopped"
