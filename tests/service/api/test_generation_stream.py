"""The events of a generate request, slow and disconnecting clients, and errors."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.generation_stream import MAX_WAITING_STEPS
from tests.service.api.sketching_device import (
    EVENTS,
    NUM_TOKENS,
    SketchingDevice,
    check_problem,
    events_of,
    generate,
    reader,
)
from tests.service.application import app_of, service, until
from tests.service.asgi_client import request

pytestmark = pytest.mark.anyio


@pytest.fixture
def device() -> SketchingDevice:
    """Not held."""
    device = SketchingDevice()
    device.release.set()
    return device


@pytest.fixture
def held() -> SketchingDevice:
    return SketchingDevice()


async def test_events_are_every_step_then_every_image_then_the_settings(device: SketchingDevice) -> None:
    async with service(device) as client:
        answer = await generate(client, n=2)
        document = (await generate(client, headers={}, n=2)).json()
    events = events_of(answer)
    assert [name for name, _ in events] == ["step"] * 8 + ["image"] * 2 + ["done"]
    data = document.pop("data")
    assert [item for name, item in events if name == "image"] == data
    assert events[-1] == ("done", document)
    for index in (0, 1):
        steps = [step for name, step in events if name == "step" and step["index"] == index]
        seed = data[index]["seed"]
        assert [step["step"] for step in steps] == [1, 2, 3, 4]
        assert [step["known"] for step in steps] == [1, 2, 3, 4]
        assert steps[1] == {
            "index": index,
            "step": 2,
            "steps": 4,
            "tokens": [None, None, seed, seed + 1],
            "known": 2,
        }
        assert steps[-1]["tokens"] == data[index]["tokens"]


async def test_the_answer_has_the_headers_of_every_answer(device: SketchingDevice) -> None:
    async with service(device) as client:
        answer = await generate(client, headers={**EVENTS, "X-Request-ID": "job-17"})
    assert answer.headers["x-request-id"] == "job-17"
    assert answer.headers["server-timing"].startswith("read;dur=")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_json_is_the_answer_unless_events_are_asked_for(device: SketchingDevice) -> None:
    async with service(device) as client:
        for accept in ("*/*", "application/json, text/event-stream", "text/event-stream;q=0.5, application/json"):
            answer = await generate(client, headers={"Accept": accept})
            assert answer.headers["content-type"] == "application/json"
        for accept in ("text/event-stream", "text/event-stream, application/json;q=0.9", "text/*"):
            answer = await generate(client, headers={"Accept": accept})
            assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_step_is_reported_before_the_next_is_computed(held: SketchingDevice) -> None:
    stream = reader()
    async with service(held) as client, request(app_of(client), stream):
        for number in range(1, NUM_TOKENS + 1):
            held.steps.release()
            if number == 1:
                assert (await stream.start())["status"] == 200
            name, step = await stream.event()
            assert (name, step["step"]) == ("step", number)
        held.release.set()
        assert [(await stream.event())[0] for _ in range(2)] == ["image", "done"]
        assert await stream.chunk() == b""


# --- clients that are slow, or leave ---------------------------------------------------------------------------------


async def test_a_slow_reader_delays_nothing_and_loses_old_steps_beyond_the_bound(
    held: SketchingDevice,
) -> None:
    stream = reader(steps=200, n=2)
    stream.stop_reading()
    async with service(held) as client, request(app_of(client), stream):
        held.steps.release()
        await stream.until_stuck()
        held.release.set()
        await until(client, lambda _: held.decoded == [[1, 2]])
        stream.read_on()
        await stream.start()
        events = [await stream.event() for _ in range(1 + MAX_WAITING_STEPS + 3)]
        assert await stream.chunk() == b""
    assert [name for name, _ in events] == ["step"] * (1 + MAX_WAITING_STEPS) + ["image"] * 2 + ["done"]
    for index in (0, 1):
        steps = [event for name, event in events[1:] if name == "step" and event["index"] == index]
        assert [step["step"] for step in steps] == list(range(200 - MAX_WAITING_STEPS // 2 + 1, 201))
        assert [step["known"] for step in steps] == sorted(step["known"] for step in steps)


@pytest.mark.parametrize("preview", [False, True])
async def test_a_client_that_leaves_costs_no_more_device_time(held: SketchingDevice, preview: bool) -> None:
    stream = reader(steps=200, n=2, preview=preview)
    async with service(held) as client:
        async with request(app_of(client), stream) as task:
            held.steps.release()
            if preview:
                await until(client, lambda health: any(health["lanes"]["decode"].values()) or held.decoded)
            else:
                await stream.start()
                await stream.event()
            stream.hang_up()
            await task
        # The step that the device is at ends; the rows have no other.
        held.steps.release()
        await until(client, lambda health: not any(any(lane.values()) for lane in health["lanes"].values()))
        registry = app_of(client).state.api.metrics.registry
    labels = {"op": "generate", "stage": "cancelled"}
    assert registry.get_sample_value("titok_abandoned_total", labels) == 2


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_a_device_that_fails_at_the_first_step_is_answered_with_500(device: SketchingDevice) -> None:
    device.poison = {1}
    async with service(device) as client:
        check_problem(await generate(client), 500)


async def test_a_device_that_fails_later_ends_the_events_with_the_problem(held: SketchingDevice) -> None:
    stream = reader(n=2)
    async with service(held) as client, request(app_of(client), stream) as task:
        held.steps.release()
        await stream.start()
        await stream.event()
        held.poison = {2}
        held.release.set()
        while (event := await stream.event())[0] == "step":
            pass
        name, document = event
        assert name == "error"
        assert (document["status"], document["instance"]) == (500, "1")
        assert "poison" not in str(document)
        await task
    assert not stream.has_answer


async def test_a_service_that_stops_ends_the_events_with_the_problem(held: SketchingDevice) -> None:
    stream = reader()
    async with service(held, drain_seconds=0) as client, request(app_of(client), stream):
        held.steps.release()
        await stream.start()
        await stream.event()
        await app_of(client).state.api.operations.engine.stop(0)
        name, document = await stream.event()
        assert (name, document["status"]) == ("error", 503)
        held.release.set()


async def test_a_full_queue_is_answered_with_429_and_retry_after(held: SketchingDevice) -> None:
    limits = {"queue_images": 2, "max_images": 2, "max_generate": 2, "max_batch_size": 1}
    async with service(held, **limits) as client, request(app_of(client), reader(n=2)):
        await until(client, lambda health: health["lanes"]["generate"]["queued_images"] == 1)
        # It waits for room for half of its time.
        refused = await generate(client, n=2, headers={"X-Request-Timeout-Ms": "200"})
        check_problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_deadline_before_the_first_step_is_answered_with_504(held: SketchingDevice) -> None:
    async with service(held) as client:
        check_problem(await generate(client, headers={**EVENTS, "X-Request-Timeout-Ms": "1"}), 504)


@pytest.mark.parametrize(
    ("body", "status"), [({"class": "crab"}, 404), ({"n": 17}, 413), ({"steps": 0}, 422), ({"model": "titok"}, 404)]
)
async def test_what_is_wrong_with_the_request_is_answered_with_its_own_status(
    device: SketchingDevice, body: dict[str, Any], status: int
) -> None:
    async with service(device) as client:
        check_problem(await generate(client, **body), status)
