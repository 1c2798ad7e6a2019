"""The sampling steps of a generate request as events; the device is a fake that can be held, step by step."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from httpx_sse import EventSource
from PIL import Image

from models.codes.code_format import CodeFormat
from models.sampling.settings import SamplingSettings
from service.api import generation_stream
from service.api.generation_stream import MAX_WAITING_STEPS
from service.engine import RowState, Stepped
from service.inference.model_info import GeneratorInfo, ModelInfo
from tests.service.application import app_of, service, until
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio

NUM_TOKENS, MASK = 4, 256
EVENTS = {"Accept": "text/event-stream"}


class SketchingDevice:
    """Knows one token more at each step, seed + step of its position, and guesses 200 for the others.

    A picture is as bright as its first token. Each step waits until it is let through by ``steps``, and pictures while
    ``draws`` is clear; ``release`` ends all waiting. A seed, or a first token, in ``poison`` makes the call fail.
    """

    def __init__(self) -> None:
        self.release = threading.Event()
        self.steps = threading.Semaphore(0)
        self.draws = threading.Event()
        self.draws.set()
        self.poison: set[int] = set()
        self.decoded: list[list[int]] = []
        self.info = ModelInfo(
            name="sketch",
            revision="1",
            image_size=8,
            code_format=CodeFormat(NUM_TOKENS, MASK),
            device="cpu",
            precision={"encoder": "float32", "decoder": "float32", "generator": "float32"},
            source="test",
            generator=GeneratorInfo(
                revision="1",
                class_names=("crane",),
                presets={"demo": SamplingSettings(steps=NUM_TOKENS, guidance_scale=0.0)},
            ),
            batch_limits={},
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        while not self.release.is_set() and not self.draws.wait(timeout=0.01):
            pass
        self.decoded.append(tokens[:, 0].tolist())
        self._refuse(tokens[:, 0])
        return np.broadcast_to(tokens[:, :1, None, None], (len(tokens), 8, 8, 3)).astype(np.uint8)

    def step(self, rows: Sequence[RowState]) -> Stepped:
        while not self.release.is_set() and not self.steps.acquire(timeout=0.01):
            pass
        self._refuse([row.seed for row in rows])
        tokens = np.full((len(rows), NUM_TOKENS), MASK)
        for position, row in enumerate(rows):
            # Of a long schedule, the last steps are those at which something becomes known.
            known = max(0, row.step + 1 + NUM_TOKENS - row.settings.steps)
            tokens[position, NUM_TOKENS - known :] = row.seed + np.arange(known)
        finished = np.array([row.step + 1 >= row.settings.steps for row in rows])
        return Stepped(tokens=tokens, sampled=np.where(tokens == MASK, 200, tokens), finished=finished)

    def _refuse(self, values: Any) -> None:
        if self.poison & set(values):
            raise RuntimeError("poison")


@pytest.fixture
def device() -> SketchingDevice:
    """Not held."""
    device = SketchingDevice()
    device.release.set()
    return device


@pytest.fixture
def held() -> SketchingDevice:
    return SketchingDevice()


async def generate(client: httpx.AsyncClient, headers: dict[str, str] = EVENTS, **body: Any) -> httpx.Response:
    return await client.post("/v1/generate", json={"class": "crane", "seed": 1, **body}, headers=headers)


def events_of(answer: httpx.Response) -> list[tuple[str, Any]]:
    return [(event.event, event.json()) for event in EventSource(answer).iter_sse()]


def reader(**body: Any) -> AsgiClient:
    content = json.dumps({"class": "crane", "seed": 1, **body}).encode()
    headers = {**EVENTS, "Content-Type": "application/json", "Content-Length": str(len(content)), "X-Request-ID": "1"}
    return AsgiClient(path="/v1/generate", headers=headers, body=content)


def brightness(image: str) -> int:
    opened = Image.open(io.BytesIO(base64.b64decode(image)))
    assert opened.format == "JPEG"
    return int(np.asarray(opened)[0, 0, 0])


async def drawing(client: httpx.AsyncClient, held: SketchingDevice, *, images: int) -> None:
    """Lets a step through, and the one after it, which the device may be at when the previews of the first are wanted."""
    held.steps.release()
    await until(client, lambda health: health["lanes"]["decode"]["queued_images"] == images or held.decoded)
    held.steps.release()
    await until(client, lambda health: held.decoded and not any(health["lanes"]["decode"].values()))


def check_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


async def test_every_step_is_told_then_every_image_then_what_makes_them_again(device: SketchingDevice) -> None:
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


async def test_a_step_is_told_before_the_next_is_made(held: SketchingDevice) -> None:
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


# --- previews --------------------------------------------------------------------------------------------------------


async def test_a_preview_shows_what_its_step_guesses_and_the_last_step_has_none(held: SketchingDevice) -> None:
    stream = reader(n=2, preview=True)
    async with service(held) as client, request(app_of(client), stream):
        await drawing(client, held, images=2)
        await stream.start()
        for index in (0, 1):
            _, step = await stream.event()
            assert (step["index"], step["step"]) == (index, 1)
            assert step["content_type"] == "image/jpeg"
            assert brightness(step["image"]) == 200
        held.release.set()
        events = [await stream.event() for _ in range(6 + 2)]
        assert all("image" not in step for _, step in events[4:6])
        assert [brightness(image["image"]) for _, image in events[6:]] == [1, 2]


async def test_nothing_is_drawn_for_those_who_did_not_ask(device: SketchingDevice) -> None:
    async with service(device) as client:
        events = events_of(await generate(client, n=2))
    assert not any("image" in step for name, step in events if name == "step")
    assert device.decoded == [[1, 2]]


async def test_previews_are_skipped_where_the_client_is_slow(held: SketchingDevice) -> None:
    stream = reader(steps=20, preview=True)
    stream.stop_reading()
    async with service(held) as client, request(app_of(client), stream):
        await drawing(client, held, images=1)
        await stream.until_stuck()
        held.release.set()
        await until(client, lambda health: health["lanes"]["generate"]["active_images"] == 0)
        stream.read_on()
        await stream.start()
        steps = [(await stream.event())[1] for _ in range(20)]
        assert (await stream.event())[0] == "image"
    assert [step["step"] for step in steps] == list(range(1, 21))
    assert [step["step"] for step in steps if "image" in step] == [1]
    assert held.decoded == [[200], [1]]


async def test_a_preview_that_the_device_cannot_draw_is_left_out(held: SketchingDevice) -> None:
    held.poison = {200}
    stream = reader(preview=True)
    async with service(held) as client, request(app_of(client), stream):
        await drawing(client, held, images=1)
        held.release.set()
        await stream.start()
        events = [await stream.event() for _ in range(NUM_TOKENS + 2)]
    assert [name for name, _ in events] == ["step"] * NUM_TOKENS + ["image", "done"]
    assert not any("image" in step for _, step in events[:NUM_TOKENS])


async def test_images_that_are_finished_do_not_wait_for_a_preview(
    held: SketchingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_stream, "PREVIEW_SECONDS", 3600)
    async with service(held) as client:
        engine = app_of(client).state.api.operations.engine
        decode, asked = engine.decode, asyncio.Event()

        async def never_for_guesses(tokens: np.ndarray, *, deadline: float) -> Any:
            if tokens[0, 0] == 200:
                asked.set()
                await asyncio.Event().wait()
            return await decode(tokens, deadline=deadline)

        monkeypatch.setattr(engine, "decode", never_for_guesses)
        answer = asyncio.create_task(generate(client, preview=True))
        held.steps.release()
        await asked.wait()
        held.release.set()
        events = events_of(await answer)
    assert [name for name, _ in events] == ["step"] * NUM_TOKENS + ["image", "done"]


async def test_no_preview_is_drawn_of_an_image_that_is_finished(
    held: SketchingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = reader(steps=1, n=2, preview=True)
    async with service(held, max_batch_size=1) as client, request(app_of(client), stream):
        engine = app_of(client).state.api.operations.engine
        decode, asked = engine.decode, []

        async def noting(tokens: np.ndarray, *, deadline: float) -> Any:
            asked.append(tokens[:, 0].tolist())
            return await decode(tokens, deadline=deadline)

        monkeypatch.setattr(engine, "decode", noting)
        held.steps.release()
        await stream.start()
        assert (await stream.event())[1]["index"] == 0
        held.release.set()
        while (await stream.event())[0] != "done":
            pass
    assert asked == [[1, 2]]


async def test_a_step_waits_for_its_preview_only_so_long(
    held: SketchingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_stream, "PREVIEW_SECONDS", 0.001)
    held.draws.clear()
    stream = reader(preview=True)
    async with service(held) as client, request(app_of(client), stream):
        held.steps.release()
        await stream.start()
        _, step = await stream.event()
        assert step["step"] == 1
        assert "image" not in step


async def test_previews_are_refused_where_no_steps_are_told(device: SketchingDevice) -> None:
    async with service(device) as client:
        for accept in ("application/json", "image/png"):
            refused = await generate(client, headers={"Accept": accept}, preview=True)
            check_problem(refused, 422)
            assert refused.json()["errors"][0]["pointer"] == "/preview"
        assert (await generate(client, headers={}, preview=False)).status_code == 200
        check_problem(await generate(client, preview="yes"), 422)


# --- clients that are slow, or leave ---------------------------------------------------------------------------------


async def test_a_client_that_reads_slowly_holds_up_nobody_and_misses_old_steps_beyond_the_bound(
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


async def test_a_full_queue_is_answered_with_429_and_a_time_to_come_back(held: SketchingDevice) -> None:
    limits = {"queue_images": 2, "max_images": 2, "max_generate": 2, "max_batch_size": 1}
    async with service(held, **limits) as client, request(app_of(client), reader(n=2)):
        await until(client, lambda health: health["lanes"]["generate"]["queued_images"] == 1)
        refused = await generate(client, n=2)
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
