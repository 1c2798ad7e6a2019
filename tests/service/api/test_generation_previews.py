"""Previews of the sampling steps of a generate request."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from service.api import generation_stream
from tests.service.api.sketching_device import (
    NUM_TOKENS,
    SketchingDevice,
    brightness,
    check_problem,
    drawing,
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


async def test_previews_are_refused_without_a_stream(device: SketchingDevice) -> None:
    async with service(device) as client:
        for accept in ("application/json", "image/png"):
            refused = await generate(client, headers={"Accept": accept}, preview=True)
            check_problem(refused, 422)
            assert refused.json()["errors"][0]["pointer"] == "/preview"
        assert (await generate(client, headers={}, preview=False)).status_code == 200
        check_problem(await generate(client, preview="yes"), 422)
