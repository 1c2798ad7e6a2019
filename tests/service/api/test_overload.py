"""Back-pressure, deadlines and failing devices as HTTP clients see them; the device is a fake that can be held."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.codes.code_format import CodeFormat
from models.codes.latents import LatentFormat
from service.engine import Engine
from service.inference.model_info import GeneratorInfo, ModelInfo
from service.operations.errors import InvalidArgument
from service.operations.image_threads import ImageThreads
from service.settings import Settings
from tests.service.application import app_of, served, service, until
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio

PNG = {"Content-Type": "image/png"}


class HeldDevice:
    """Gives the mean brightness as every id, once ``release`` is set; raises on a black image."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.batches: list[int] = []
        self.info = ModelInfo(
            name="held",
            revision="1",
            image_size=8,
            codes=CodeFormat(4, 256),
            latent_format=LatentFormat(4, 2, is_posterior=False),
            device="cpu",
            precision={"encoder": "float32", "decoder": "float32", "generator": "float32"},
            source="test",
            generator=GeneratorInfo(revision="1", class_names=("crane, bird", "crane, machine"), presets={}),
            batch_limits={"encode": 32, "decode": 32, "generate": 32},
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.release.wait()
        self.batches.append(len(images))
        means = images.reshape(len(images), -1).mean(axis=1).astype(np.int64)
        if (means == 0).any():
            raise RuntimeError("a black image")
        return np.repeat(means[:, None], 4, axis=1)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        self.release.wait()
        return np.broadcast_to(tokens[:, :1, None, None], (len(tokens), 8, 8, 3)).astype(np.uint8)

    def step(self, rows: Sequence[Any]) -> None:
        raise NotImplementedError


@asynccontextmanager
async def open_service(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """On a device that holds nothing back."""
    device = HeldDevice()
    device.release.set()
    async with service(device, **settings) as client:
        yield client


def picture(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (brightness,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


async def queued(client: httpx.AsyncClient, images: int) -> None:
    """Waits until the encode lane holds that many images, those at the device among them."""
    await until(client, lambda health: sum(lane_images(health)) == images)


async def at_device(client: httpx.AsyncClient) -> None:
    """Waits until the device holds the one image there is: what comes now is not in its batch."""
    await until(client, lambda health: lane_images(health) == (0, 1))


def lane_images(health: Any) -> tuple[int, int]:
    lane = health["lanes"]["encode"]
    return lane["queued_images"], lane["active_images"]


def post_decode(client: httpx.AsyncClient, token: int) -> asyncio.Future[httpx.Response]:
    return asyncio.ensure_future(client.post("/v1/decode", json={"tokens": [[token] * 4]}))


async def test_a_full_queue_is_answered_with_429_and_retry_after() -> None:
    device = HeldDevice()
    async with service(device, queue_images=4, max_images=4, max_generate=4, max_batch_size=2) as client:
        waiting = []
        for brightness in range(1, 6):  # one at the device, four in the queue
            waiting.append(asyncio.create_task(client.post("/v1/encode", content=picture(brightness), headers=PNG)))
            await until(client, lambda health, n=brightness: lane_images(health) == (n - 1, 1))
        # It waits for room for half of its time.
        hurried = {**PNG, "X-Request-Timeout-Ms": "2000"}
        refused = await client.post("/v1/encode", content=picture(200), headers=hurried)
        assert (await client.get("/healthz")).json()["requests"]["encode"] == len(waiting)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:titok:problem:too-many-requests"
        assert int(refused.headers["retry-after"]) >= 1
        device.release.set()
        answers = await asyncio.gather(*waiting)
        assert [answer.json()["data"][0]["tokens"][0] for answer in answers] == [1, 2, 3, 4, 5]
        assert (await client.get("/healthz")).json()["requests"]["encode"] == 0
        assert max(device.batches) <= 2
        assert (await client.post("/v1/encode", content=picture(200), headers=PNG)).status_code == 200


@pytest.mark.parametrize("path", ["encode", "decode", "reconstruct"])
async def test_no_body_is_read_for_a_refusal(path: str) -> None:
    device = HeldDevice()
    async with service(device, cache="off", queue_images=1, max_images=1, max_generate=1) as client:
        busy = [post_decode(client, 1)]
        await until(client, lambda health: health["lanes"]["decode"]["active_images"] == 1)
        busy.append(post_decode(client, 2))
        await until(client, lambda health: health["lanes"]["decode"]["queued_images"] == 1)
        engine: Engine = app_of(client).state.api.operations.engine
        with await engine.open_encode(1, image_size=8, deadline=time.monotonic() + 60):
            asked = AsgiClient(path=f"/v1/{path}", headers={**PNG, "X-Request-Timeout-Ms": "2000"}, body=b"")
            async with request(app_of(client), asked) as answered:
                assert (await asked.start())["status"] == 429
                await answered
            assert asked.messages_read == 0
        device.release.set()
        assert [answer.status_code for answer in await asyncio.gather(*busy)] == [200, 200]


async def test_a_deadline_that_passes_is_answered_with_504() -> None:
    device = HeldDevice()
    async with service(device) as client:
        late = await client.post("/v1/encode", content=picture(9), headers={**PNG, "X-Request-Timeout-Ms": "50"})
        assert late.status_code == 504
        assert late.json()["type"] == "urn:titok:problem:deadline-exceeded"
        device.release.set()
        assert (await client.post("/v1/encode", content=picture(9), headers=PNG)).status_code == 200


async def test_large_images_that_wait_past_their_deadline_are_answered_and_never_decoded() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device, decode_threads=1, cache="off") as client:
        threads: ImageThreads = app_of(client).state.api.operations.threads
        release = threading.Event()
        holding = asyncio.ensure_future(threads.run(release.wait, deadline=time.monotonic() + 60))
        buffer = io.BytesIO()
        Image.new("L", (2000, 2000)).save(buffer, "WEBP")
        headers = {"Content-Type": "image/webp", "X-Request-Timeout-Ms": "50"}
        posts = [client.post("/v1/encode", content=buffer.getvalue(), headers=headers) for _ in range(12)]
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {504}
        release.set()
        await holding
        assert (await client.post("/v1/encode", content=picture(9), headers=PNG)).status_code == 200
        registry = app_of(client).state.api.metrics.registry
        counted = "titok_preprocess_duration_seconds_count"
        assert registry.get_sample_value(counted, {"format": "PNG"}) == 1
        assert not registry.get_sample_value(counted, {"format": "WEBP"})
        assert registry.get_sample_value("titok_abandoned_total", {"op": "encode", "stage": "expired"}) == 12


async def test_an_image_that_breaks_the_device_fails_alone() -> None:
    device = HeldDevice()
    async with service(device) as client:
        first = asyncio.create_task(client.post("/v1/encode", content=picture(1), headers=PNG))
        await at_device(client)
        together = [
            asyncio.create_task(client.post("/v1/encode", content=picture(brightness), headers=PNG))
            for brightness in (0, 7, 8)
        ]
        await queued(client, 4)
        device.release.set()
        broken, *good = await asyncio.gather(*together)
        assert broken.status_code == 500
        assert broken.json()["instance"] == broken.headers["x-request-id"]
        assert "black" not in broken.text
        assert [answer.json()["data"][0]["tokens"][0] for answer in good] == [7, 8]
        assert (await first).status_code == 200


async def test_a_name_of_two_classes_is_answered_with_both_ids() -> None:
    device = HeldDevice()
    async with service(device) as client:
        classes = (await client.get("/v1/models/held/classes")).json()["data"]
        assert [entry["names"] for entry in classes] == [["crane", "bird"], ["crane", "machine"]]

        models = app_of(client).state.api.operations.models
        with pytest.raises(InvalidArgument) as refused:
            models.classes.resolve("Crane")
        assert [entry["id"] for entry in refused.value.extensions["candidates"]] == [0, 1]
        assert models.classes.resolve("MACHINE") == 1


async def test_a_service_without_a_device_is_alive_and_says_why_it_is_not_ready() -> None:
    def broken(_: Settings) -> Any:
        raise RuntimeError("no such device")

    app = served(Settings(), broken)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        health = await until(client, lambda health: health["status"] != "starting")
        assert health.status_code == 503
        assert "no such device" in health.json()["reason"]
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/v1/decode", json={"code": "AAAAAA"})).status_code == 503
