"""Generation is batched by step: rows at different steps share one call, and join and leave between steps."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from tests.service.engine.fakes import FakeDevice, Ids, Start, Submit, generated, items

pytestmark = pytest.mark.anyio


async def test_rows_at_different_steps_share_one_call_and_leave_when_finished(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    early = await submit(engine.generate(items(1, steps=4), deadline=soon))
    device.let_through(2)
    device.wait_for_calls(3)
    late = await submit(engine.generate(items(2, steps=2), deadline=soon))
    device.release()
    await asyncio.gather(*early, *late)
    assert device.rows_of("step") == [((1, 0),), ((1, 1),), ((1, 2),), ((1, 3), (2, 0)), ((2, 1),)]


async def test_rows_wait_for_room_and_join_as_others_finish(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start(max_batch_size=2)
    requested = [*items(1, steps=1), *items(2, steps=3), *items(3, steps=2), *items(4, steps=1)]
    made = await engine.generate(requested, deadline=soon)
    assert device.rows_of("step") == [((1, 0), (2, 0)), ((2, 1), (3, 0)), ((2, 2), (3, 1)), ((4, 0),)]
    np.testing.assert_array_equal(made.tokens[:, :2], [[1, 1], [2, 3], [3, 2], [4, 1]])
    assert made.timing.batch_images == 2


async def test_every_row_has_its_own_class_and_seed(start: Start, soon: float) -> None:
    engine = await start()
    known, unknown = await asyncio.gather(
        engine.generate(items(5, 6, label=207), deadline=soon), engine.generate(items(5), deadline=soon)
    )
    np.testing.assert_array_equal(known.tokens, generated(5, 6, label=207))
    np.testing.assert_array_equal(unknown.tokens, generated(5))


async def test_every_step_is_reported_in_order_in_the_event_loop_before_the_result(start: Start, soon: float) -> None:
    engine = await start()
    told: list[tuple[int, int, list[int]]] = []
    threads: set[int] = set()

    def on_step(index: int, step: int, tokens: Ids, sampled: Ids) -> None:
        np.testing.assert_array_equal(sampled, tokens + 1)
        told.append((index, step, tokens.tolist()))
        threads.add(threading.get_ident())

    await engine.generate(items(1, 2, steps=3), deadline=soon, on_step=on_step)
    assert told == [
        (index, step, generated(seed, steps=step)[0].tolist())
        for step in (1, 2, 3)
        for index, seed in enumerate((1, 2))
    ]
    assert threads == {threading.get_ident()}


async def test_a_cancelled_request_gets_no_more_step_reports(
    start: Start, submit: Submit, device: FakeDevice, soon: float
) -> None:
    engine = await start()
    device.hold()
    told: list[int] = []
    [gone] = await submit(
        engine.generate(items(1, steps=5), deadline=soon, on_step=lambda _, step, *__: told.append(step))
    )
    device.wait_for_calls(1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    device.release()
    await engine.generate(items(2), deadline=soon)
    assert told == []
