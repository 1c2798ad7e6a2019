"""Device errors: a failing image fails only its request, and a dead device thread fails all requests."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.engine import DeviceFailed, EngineStopped
from tests.service.engine.fakes import (
    Build,
    Busy,
    DeviceLost,
    FakeDevice,
    FakeObserver,
    Ids,
    Pixels,
    Start,
    Submit,
    encode,
    generated,
    images,
    items,
    tokens,
)

pytestmark = pytest.mark.anyio


async def test_only_the_request_with_the_bad_image_fails(
    start: Start, busy: Busy, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.poison = {3}
    first = await busy(engine)
    good, bad, other = await submit(
        encode(engine, images(1), deadline=soon),
        encode(engine, images(2, 3, 4), deadline=soon),
        encode(engine, images(5), deadline=soon),
    )
    device.release()
    with pytest.raises(DeviceFailed, match="cannot compute") as failed:
        await bad
    assert "cannot compute" in str(failed.value.__cause__)
    await first
    np.testing.assert_array_equal((await good).tokens, tokens(1))
    np.testing.assert_array_equal((await other).tokens, tokens(5))
    assert engine.state.is_ready
    np.testing.assert_array_equal((await encode(engine, images(6), deadline=soon)).tokens, tokens(6))


async def test_after_a_failed_batch_the_rest_of_a_failed_request_is_not_run(
    start: Start, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=3)
    device.poison = {1}
    with pytest.raises(DeviceFailed):
        await encode(engine, images(1, 2, 3, 4), deadline=soon)
    await encode(engine, images(5), deadline=soon)
    assert device.rows_of("encode") == [(1, 2, 3), (1,), (5,)]


async def test_only_the_request_with_the_bad_row_fails(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.poison = {2}
    good, bad, other = await submit(*(engine.generate(items(seed), deadline=soon) for seed in (1, 2, 3)))
    with pytest.raises(DeviceFailed, match="cannot compute") as failed:
        await bad
    assert "cannot compute" in str(failed.value.__cause__)
    np.testing.assert_array_equal((await good).tokens, generated(1))
    np.testing.assert_array_equal((await other).tokens, generated(3))
    assert engine.state.is_ready


async def test_a_row_with_invalid_settings_fails_only_its_request(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    good, bad = await submit(
        engine.generate(items(1), deadline=soon), engine.generate([*items(2, steps=0), *items(3)], deadline=soon)
    )
    with pytest.raises(DeviceFailed, match="no steps"):
        await bad
    np.testing.assert_array_equal((await good).tokens, generated(1))
    assert device.rows_of("step") == [((1, 0), (2, 0), (3, 0)), ((1, 0),), ((2, 0),), ((1, 1),), ((1, 2),)]


async def test_a_device_that_returns_too_few_rows_fails_the_request(
    start: Start, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, soon: float
) -> None:
    engine = await start()

    def forget_the_last(batch: Pixels) -> Ids:
        return tokens(*range(len(batch) - 1))

    with monkeypatch.context() as patch:
        patch.setattr(device, "encode", forget_the_last)
        with pytest.raises(DeviceFailed):
            await encode(engine, images(1, 2), deadline=soon)
    np.testing.assert_array_equal((await encode(engine, images(3), deadline=soon)).tokens, tokens(3))


@pytest.mark.parametrize("form", ["inline"], indirect=True)
async def test_when_the_device_thread_dies_every_request_fails(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    device.fatal = {2}
    device.hold()
    waiters = await submit(
        encode(engine, images(2), deadline=soon),
        encode(engine, images(1), deadline=soon),
        encode(engine, images(3, 4), deadline=soon),
        engine.decode(tokens(5), deadline=soon),
        engine.generate(items(6), deadline=soon),
    )
    device.wait_for_calls(1)
    device.release()
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 5
    assert engine.state.name == "failed"
    assert "fell off the bus" in str(engine.state.reason)
    with pytest.raises(EngineStopped, match="fell off the bus"):
        await encode(engine, images(7), deadline=soon)
    with pytest.raises(EngineStopped):
        await engine.ready()


@pytest.mark.parametrize("form", ["inline"], indirect=True)
async def test_when_the_device_thread_dies_while_sampling_every_row_fails(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    active = await submit(engine.generate(items(1, steps=9), deadline=soon))
    device.let_through(2)
    device.wait_for_calls(3)
    device.fatal = {2}
    joining = await submit(*(engine.generate(items(seed), deadline=soon) for seed in (2, 3)))
    device.release()
    outcomes = await asyncio.gather(*active, *joining, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 3


@pytest.mark.parametrize("form", ["inline"], indirect=True)
@pytest.mark.parametrize("error", [RuntimeError("no such device"), DeviceLost("no such device")])
async def test_a_device_that_cannot_be_opened_fails_the_engine(build: Build, error: BaseException, soon: float) -> None:
    def factory() -> FakeDevice:
        raise error

    engine = build(factory)
    engine.start()
    with pytest.raises(EngineStopped, match="cannot be opened: no such device"):
        await engine.ready()
    assert engine.state.name == "failed"
    with pytest.raises(EngineStopped, match="no such device"):
        await encode(engine, images(1), deadline=soon)
    await engine.stop(1)
    assert engine.state.name == "failed"


async def test_a_step_callback_that_raises_affects_no_request(start: Start, soon: float) -> None:
    engine = await start()
    loop = asyncio.get_running_loop()
    heard: list[object] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))

    def on_step(index: int, step: int, tokens: Ids, sampled: Ids) -> None:
        raise KeyError(step)

    made = await engine.generate(items(1, steps=2), deadline=soon, on_step=on_step)
    loop.set_exception_handler(handler)
    np.testing.assert_array_equal(made.tokens, generated(1, steps=2))
    assert [type(error) for error in heard] == [KeyError, KeyError]
    assert engine.state.is_ready


async def test_every_attempt_of_a_failed_batch_is_reported(
    start: Start, device: FakeDevice, observer: FakeObserver, soon: float
) -> None:
    engine = await start()
    device.poison = {1}
    with pytest.raises(DeviceFailed):
        await encode(engine, images(2, 1), deadline=soon)
    assert observer.batches == [("encode", 2), ("encode", 1), ("encode", 1)]
