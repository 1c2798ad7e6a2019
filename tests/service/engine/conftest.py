"""Engines on a fake device. Every test ends with empty queues, no threads left, and no unhandled errors in the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine import Engine, LaneLimits
from service.engine.protocol import Device
from tests.service.engine.fakes import (
    AT_REST,
    PATIENCE,
    Build,
    Busy,
    FakeClock,
    FakeDevice,
    FakeObserver,
    FakeWorker,
    Pool,
    Start,
    Submit,
    encode,
    images,
    inline_engine,
    remote_engine,
    until,
)


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def observer() -> FakeObserver:
    return FakeObserver()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def soon(clock: FakeClock) -> float:
    """A deadline that is reached only if the test advances the clock."""
    return clock.now + 3600


@pytest.fixture(autouse=True)
def no_device_thread_is_left() -> Iterator[None]:
    before = device_threads()  # of a test that failed: the tests after it shall not fail as well
    yield
    assert device_threads() <= before


def device_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "device"}


async def rest(engine: Engine) -> None:
    await until(lambda: engine.snapshot() == AT_REST)
    pool = engine._queues.encode.pool
    assert len(pool._free) == pool.size


@pytest.fixture(params=["inline", "remote"])
def form(request: pytest.FixtureRequest) -> str:
    """Where the device is: in a thread of the engine, or behind a worker's socket."""
    return str(request.param)


@pytest.fixture
async def build(
    device: FakeDevice, observer: FakeObserver, clock: FakeClock, form: str, tmp_path: Path
) -> AsyncIterator[Build]:
    """Builds engines that are not started."""
    untold: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: untold.append(context))
    engines: list[Engine] = []
    workers: list[FakeWorker] = []

    def build(factory: Callable[[], Device] = lambda: device, *, depth: int = 1, **limits: int) -> Engine:
        if form == "inline":
            engine: Engine = inline_engine(factory, limits=LaneLimits(**limits), observer=observer, clock=clock)
        else:
            workers.append(FakeWorker(tmp_path / f"{len(workers)}", factory, clock))
            addresses = {"fake": str(workers[-1].address)}
            engine = remote_engine(addresses, limits=LaneLimits(**limits), observer=observer, clock=clock, depth=depth)
        engines.append(engine)
        return engine

    build.workers = workers  # type: ignore[attr-defined]
    yield build
    device.release()
    for engine in engines:
        try:
            if engine.state.is_ready:
                await rest(engine)
        finally:
            await engine.stop(PATIENCE)
        assert engine.snapshot() == AT_REST
    for worker in workers:
        worker.stop()
    gc.collect(1)
    await asyncio.sleep(0)
    loop.set_exception_handler(handler)
    assert untold == []


@pytest.fixture
def start(build: Build) -> Start:
    """Starts an engine and waits until it is ready."""

    async def start(**limits: int) -> Engine:
        engine = build(**limits)
        engine.start()
        await engine.ready()
        return engine

    return start


@pytest.fixture
def submit() -> Submit:
    """Starts requests, in order, and returns when all of them have been admitted or refused."""

    async def submit(*requests: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(request) for request in requests]
        await asyncio.sleep(0)
        return tasks

    return submit


@pytest.fixture
def busy(device: FakeDevice, soon: float, submit: Submit) -> Busy:
    """Blocks the device in a request for image 0, so that later requests queue up."""

    async def busy(engine: Engine) -> asyncio.Task[Any]:
        device.hold()
        [task] = await submit(encode(engine, images(0), deadline=soon))
        device.wait_for_calls(1)
        return task

    return busy


@pytest.fixture
async def pool(clock: FakeClock, observer: FakeObserver, tmp_path: Path, form: str) -> AsyncIterator[Pool]:
    """Starts an engine in front of several workers, each with a device of its own."""
    assert form == "remote"
    started: list[tuple[Engine, list[FakeWorker], list[FakeDevice]]] = []

    async def pool(count: int, **limits: int) -> tuple[Engine, list[FakeDevice], list[FakeWorker]]:
        devices = [FakeDevice() for _ in range(count)]
        workers = [
            FakeWorker(tmp_path / f"worker-{index}", lambda device=device: device, clock)
            for index, device in enumerate(devices)
        ]
        engine = remote_engine(
            {worker.address.name: str(worker.address) for worker in workers},
            limits=LaneLimits(**limits),
            observer=observer,
            clock=clock,
            depth=1,
        )
        started.append((engine, workers, devices))
        engine.start()
        await engine.ready()
        await until(lambda: len(engine._queues.up) == count)
        return engine, devices, workers

    yield pool
    for engine, workers, devices in started:
        for device in devices:
            device.release()
        await engine.stop(PATIENCE)
        for worker in workers:
            worker.stop()
