"""Devices that can run nothing any more, and processes without file descriptors: what is replaced, and what goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from service.engine import DeviceFailed, Engine, EngineStopped, QueueFull, WorkerCrashed
from service.engine.protocol import DeviceLost
from service.engine.wire import Channel, DeviceReady
from tests.service.engine.fakes import (
    PATIENCE,
    Build,
    FakeClock,
    FakeDevice,
    Pool,
    Submit,
    encode,
    images,
    inline_engine,
    remote_engine,
    tokens,
    until,
)

pytestmark = pytest.mark.anyio
remote = pytest.mark.parametrize("form", ["remote"], indirect=True)
inline = pytest.mark.parametrize("form", ["inline"], indirect=True)


@pytest.fixture
async def watched(build: Build, device: FakeDevice, openings: list[None]) -> Engine:
    """An engine whose device is opened again by each new worker."""

    def factory() -> FakeDevice:
        openings.append(None)
        return device

    engine = build(factory)
    engine.start()
    await engine.ready()
    return engine


@pytest.fixture
def openings() -> list[None]:
    """One entry for each worker that has opened the device."""
    return []


@remote
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA driver error: uncorrectable ECC error encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
async def test_a_worker_whose_cuda_context_has_ended_leaves_and_its_batch_is_repeated(
    watched: Engine, openings: list[None], device: FakeDevice, soon: float, message: str
) -> None:
    device.errors = [RuntimeError(message)]
    np.testing.assert_array_equal((await encode(watched, images(1, 2), deadline=soon)).tokens, tokens(1, 2))
    assert device.rows_of("encode") == [(1, 2), (1,), (2,)]
    assert len(openings) == 2


@remote
async def test_a_worker_leaves_after_five_single_images_in_a_row_that_failed(
    watched: Engine, openings: list[None], device: FakeDevice, soon: float
) -> None:
    device.errors = [KeyError(number) for number in range(4)]
    for _ in range(4):
        with pytest.raises(DeviceFailed):
            await encode(watched, images(1), deadline=soon)
    await encode(watched, images(1), deadline=soon)
    device.errors = [KeyError(number) for number in range(5)]
    for _ in range(4):
        with pytest.raises(DeviceFailed):
            await encode(watched, images(1), deadline=soon)
    assert len(openings) == 1
    np.testing.assert_array_equal((await encode(watched, images(1), deadline=soon)).tokens, tokens(1))
    assert len(openings) == 2


@remote
async def test_out_of_memory_is_no_loss_of_the_device(
    watched: Engine, openings: list[None], device: FakeDevice, soon: float
) -> None:
    device.errors = [RuntimeError("CUDA error: out of memory")]
    with pytest.raises(DeviceFailed, match="out of memory"):
        await encode(watched, images(1), deadline=soon)
    assert len(openings) == 1


@inline
async def test_an_engine_in_one_process_that_loses_its_device_reports_it(
    device: FakeDevice, clock: FakeClock, soon: float, form: str
) -> None:
    failures: list[BaseException] = []
    engine = inline_engine(lambda: device, clock=clock, on_failure=failures.append)
    engine.start()
    await engine.ready()
    device.errors = [RuntimeError("CUDA error: unspecified launch failure")]
    with pytest.raises(EngineStopped, match="the device is lost: CUDA error: unspecified launch failure"):
        await encode(engine, images(1), deadline=soon)
    await until(lambda: bool(failures))
    assert (engine.state.name, [type(failure) for failure in failures]) == ("failed", [DeviceLost])
    await engine.stop(PATIENCE)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open only ``count`` more descriptors."""
    gc.collect()  # nothing is closed meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.dup(0) for _ in range(count + 1)]
    for probe in probes:
        os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(probes), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@remote
@pytest.mark.parametrize(("left", "message"), [(0, "cannot connect to worker"), (1, "cannot accept a front end")])
async def test_a_link_goes_on_when_descriptors_are_free_again(
    build: Build, clock: FakeClock, soon: float, left: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = build()
    address = str(build.workers[0].address)  # type: ignore[attr-defined]
    first.start()
    await first.ready()
    await encode(first, images(1), deadline=soon)  # the worker has closed what it received when `first` connected
    engine = remote_engine({"fake": address}, clock=clock)
    try:
        with descriptors_left(left):
            engine.start()
            await until(lambda: message in caplog.text)
            assert not engine.state.is_ready
        await engine.ready()
        np.testing.assert_array_equal((await encode(engine, images(1), deadline=soon)).tokens, tokens(1))
    finally:
        await engine.stop(PATIENCE)


@remote
async def test_a_link_that_meets_an_unforeseen_error_connects_again(
    build: Build, soon: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build()
    with monkeypatch.context() as patch:
        patch.delattr("service.engine.remote.map_counter")
        engine.start()
        await until(lambda: "cannot connect to worker fake" in caplog.text)
    await engine.ready()
    with monkeypatch.context() as patch:
        patch.delattr("service.engine.remote.map_rows")
        with pytest.raises(WorkerCrashed):  # not repeated for ever
            await engine.decode(tokens(1), deadline=soon)
    assert caplog.text.count("cannot read an answer of worker fake") == 2
    assert "no worker is left" in caplog.text
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(EngineStopped):  # the link may be down, or be about to note it
                np.testing.assert_array_equal((await engine.decode(tokens(1), deadline=soon)).images, images(1))
                break
            await asyncio.sleep(0)


@remote
async def test_what_fails_on_one_worker_is_retried_on_the_other(pool: Pool, submit: Submit, soon: float) -> None:
    engine, (broken, sound), _ = await pool(2, max_batch_size=2)
    broken.poison, broken.fatal = {1, 2}, {3}
    broken.hold()
    sound.hold()
    waiters = await submit(*(encode(engine, images(value, value), deadline=soon) for value in (1, 3)))
    for device in (broken, sound):  # one batch each
        device.wait_for_calls(1)
    broken.release()
    await until(lambda: not broken.is_held)
    sound.release()
    for value, waiter in zip((1, 3), waiters, strict=True):
        np.testing.assert_array_equal((await waiter).tokens, tokens(value, value))
    for value in (2, 3):
        np.testing.assert_array_equal((await encode(engine, images(value), deadline=soon)).tokens, tokens(value))
    sound.poison = {2}
    with pytest.raises(DeviceFailed):
        await encode(engine, images(2), deadline=soon)


@remote
async def test_memory_that_cannot_be_allocated_is_back_pressure(build: Build, soon: float) -> None:
    engine = build()
    engine.start()
    await engine.ready()
    await engine.decode(tokens(1), deadline=soon)  # the worker has closed what it received when the engine connected
    with descriptors_left(0), pytest.raises(QueueFull, match="No memory is left"):
        await encode(engine, images(1), deadline=soon)
    np.testing.assert_array_equal((await encode(engine, images(2), deadline=soon)).tokens, tokens(2))


@remote
async def test_an_error_in_the_thread_of_a_link_ends_the_engine_and_is_reported(
    build: Build, device: FakeDevice, clock: FakeClock, soon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build()
    first.start()
    await first.ready()
    failures: list[BaseException] = []
    address = str(build.workers[0].address)  # type: ignore[attr-defined]
    engine = remote_engine({"fake": address}, clock=clock, on_failure=failures.append)
    engine.start()
    await engine.ready()
    with monkeypatch.context() as patch:
        patch.delattr("service.engine.runner.LinkRunner._copy_results")
        with pytest.raises(EngineStopped, match="the device thread has died"):
            await encode(engine, images(1), deadline=soon)
    await until(lambda: len(failures) == 1)
    assert engine.state.name == "failed"
    await engine.stop(PATIENCE)


@inline
def test_a_message_whose_descriptor_was_dropped_is_an_error(form: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(ours).send(DeviceReady(None), [0])
        with descriptors_left(0), pytest.raises(OSError, match="Too many open files"):
            Channel(theirs).receive()
