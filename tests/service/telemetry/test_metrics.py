"""Series exist before their first event: ``rate()`` does not see the event that a series begins with."""

from __future__ import annotations

import httpx
import pytest

from service.telemetry.metrics import Metrics
from service.telemetry.observer import RedisMetrics
from tests.service.api.test_overload import PNG, HeldDevice, picture
from tests.service.application import app_of, service

pytestmark = pytest.mark.anyio

Series = tuple[str, frozenset[tuple[str, str]]]


def series(metrics: Metrics) -> dict[Series, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


async def ask_for_everything(client: httpx.AsyncClient) -> set[int]:
    """Requests of every kind, good and bad. Returns the statuses of the answers."""
    code = (await client.post("/v1/encode", content=picture(7), headers=PNG)).json()["data"][0]["code"]
    answers = [
        await client.post("/v1/encode", content=picture(7), headers=PNG),
        await client.post("/v1/encode", content=b"no image", headers=PNG),
        await client.post("/v1/encode", content=picture(8), headers={**PNG, "X-Request-Timeout-Ms": "1"}),
        await client.post("/v1/decode", json={"codes": [code]}),
        await client.post("/v1/decode", json={"tokens": [[-1]]}),
        await client.get("/v1/models"),
        await client.get("/v1/models/none"),
        await client.get("/v1/nothing"),
        await client.get("/healthz"),
    ]
    return {answer.status_code for answer in answers}


async def test_no_series_begins_with_an_event() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device) as client:
        metrics: Metrics = app_of(client).state.api.metrics
        before = series(metrics)
        statuses = await ask_for_everything(client)
        after = series(metrics)
    assert statuses >= {200, 400, 404, 422}
    assert after.keys() == before.keys()
    assert sum(after.values()) > sum(before.values())


async def test_every_labelled_metric_has_series_before_anything_has_happened() -> None:
    async with service(HeldDevice()) as client:
        metrics: Metrics = app_of(client).state.api.metrics
        assert {family.name for family in metrics.registry.collect() if not family.samples} == set()


def test_a_failure_of_redis_is_an_increase() -> None:
    metrics = Metrics()
    before = series(metrics)
    RedisMetrics(metrics.cache_redis).failed("claim", "timeout")
    assert series(metrics).keys() == before.keys()
