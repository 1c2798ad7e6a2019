"""The cache in the HTTP API, with a real Redis and its failures."""

from __future__ import annotations

import asyncio
import hashlib
import io
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.cache import CachedCode, KeySpace
from service.cache.values import pack_value
from tests.service.api.test_overload import PNG, HeldDevice, picture, service
from tests.service.cache.redis_server import RedisServer

pytestmark = pytest.mark.anyio

GREY = CachedCode(bytes([9, 9, 9, 9]), (8, 8))
PATIENT = {"redis_timeout": 1, "cache_front_entries": 0}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server.start()
    server.kill()


@pytest.fixture
def device() -> HeldDevice:
    device = HeldDevice()
    device.release.set()
    return device


async def encode(client: httpx.AsyncClient, body: bytes) -> tuple[int, bool]:
    """The brightness that the device saw in an image, and whether it was cached."""
    answer = await client.post("/v1/encode", content=body, headers=PNG)
    assert answer.status_code == 200, answer.text
    [image] = answer.json()["data"]
    assert len(set(image["tokens"])) == 1
    return image["tokens"][0], image["cached"]


async def until_cached(client: httpx.AsyncClient, body: bytes) -> None:
    while not (await encode(client, body))[1]:
        pass


async def test_replicas_share_the_cache(redis_server: RedisServer, device: HeldDevice) -> None:
    settings = {**PATIENT, "redis_url": redis_server.url}
    async with service(device, **settings) as one, service(HeldDevice(), **settings) as other:
        await until_cached(one, picture(7))
        assert await encode(other, picture(7)) == (7, True)


async def test_all_codes_of_concurrent_misses_are_stored(redis_server: RedisServer, device: HeldDevice) -> None:
    async with service(device, redis_url=redis_server.url) as client:
        await asyncio.gather(*(encode(client, picture(brightness)) for brightness in range(1, 65)))
        with redis_server.client() as redis:
            while redis.dbsize() < 128:  # noqa: ASYNC110  by their bytes and by their pixels, behind the answers
                await asyncio.sleep(0.01)


async def test_the_same_pixels_in_another_file_are_a_hit_and_that_file_is_cached(
    redis_server: RedisServer, device: HeldDevice
) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(7))).resize((16, 16)).save(buffer, "TIFF")
    async with service(device, redis_url=redis_server.url, **PATIENT) as client:
        await until_cached(client, picture(7))
        seen = len(device.batches)
        files = [("a", ("a.tiff", buffer.getvalue())), ("b", ("b.png", picture(8))), ("c", ("c.png", picture(7)))]
        images = (await client.post("/v1/encode", files=files)).json()["data"]
        assert [image["tokens"][0] for image in images] == [7, 8, 7]
        assert [image["cached"] for image in images] == [True, False, True]
        assert [image["original_size"]["width"] for image in images] == [16, 8, 8]
        assert device.batches[seen:] == [1]
        await until_cached(client, picture(8))  # written behind the answer
        with redis_server.client() as redis:
            keys = redis.keys()
            assert len([key for key in keys if b":pixels:" in key]) == 2
        metrics = client._transport.app.state.api.metrics  # type: ignore[attr-defined]
        assert metrics.registry.get_sample_value("titok_cache_requests_total", {"result": "pixels"}) == 1


@pytest.mark.parametrize("fault", ["not started", "killed", "paused", "restarted empty", "full", "lying", "list"])
async def test_redis_failures_never_fail_requests_or_mix_up_codes(
    redis_server: RedisServer, device: HeldDevice, fault: str
) -> None:
    keys = KeySpace("titok", "held", "1")
    if fault == "not started":
        redis_server.kill()
    async with service(device, redis_url=redis_server.url, cache_front_entries=0, redis_timeout=0.01) as client:

        async def request(number: int) -> None:
            brightness = number % 200 + 1
            assert (await encode(client, picture(brightness)))[0] == brightness

        async def many() -> None:
            requests = [asyncio.create_task(request(number)) for number in range(150)]
            await asyncio.sleep(0)
            for cancelled in requests[::7]:
                cancelled.cancel()
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]

        await many()
        load = asyncio.create_task(many())
        await asyncio.sleep(0)
        if fault == "killed":
            redis_server.kill()
        elif fault == "paused":
            redis_server.signal(signal.SIGSTOP)
        elif fault == "restarted empty":
            redis_server.kill()
            redis_server.start()
        elif fault != "not started":
            with redis_server.client() as redis:
                if fault == "full":
                    redis.config_set("maxmemory", 1)
                for key in redis.scan_iter():
                    if fault == "lying":
                        # An id out of range is bound to its key, and a code of another is not.
                        out_of_range = pack_value(key, CachedCode(b"\xff" * 5, (8, 8)))
                        redis.set(key, out_of_range if key[-1] % 2 else pack_value(keys.upload(bytes(32)), GREY))
                    elif fault == "list":
                        redis.delete(key)
                        redis.rpush(key, b"1")
        await load
        await many()


async def test_two_replicas_compute_an_image_once(redis_server: RedisServer, device: HeldDevice) -> None:
    other = HeldDevice()
    settings = {**PATIENT, "redis_url": redis_server.url, "cache_lease": 60}
    device.release.clear()
    async with service(device, **settings) as one, service(other, **settings) as two:
        burst = [asyncio.create_task(encode((one, two)[number % 2], picture(7))) for number in range(200)]
        with redis_server.client() as redis:
            while not list(redis.scan_iter("*:lease")):  # noqa: ASYNC110  another process does it
                await asyncio.sleep(0)
            device.release.set()
            other.release.set()
            assert {brightness for brightness, _ in await asyncio.gather(*burst)} == {7}
            assert sum(device.batches) + sum(other.batches) == 1
            while list(redis.scan_iter("*:lease")):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_stale_lease_delays_requests_for_its_duration_at_most(
    redis_server: RedisServer, device: HeldDevice
) -> None:
    key = KeySpace("titok", "held", "1").upload(hashlib.sha256(picture(7)).digest())
    with redis_server.client() as redis:
        redis.set(key + b":lease", b"")  # without an end
    async with service(device, redis_url=redis_server.url, cache_lease=0.1, **PATIENT) as client:
        assert await encode(client, picture(7)) == (7, False)
