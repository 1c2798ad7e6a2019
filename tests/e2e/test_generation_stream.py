"""Sampling steps as events, from a real server to a real client."""

from __future__ import annotations

import asyncio
import base64
import io
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource, aconnect_sse, connect_sse
from PIL import Image

from tests.e2e.conftest import Server


def events_of(client: httpx.Client, body: dict[str, Any]) -> tuple[httpx.Response, list[tuple[str, Any]]]:
    with connect_sse(client, "POST", "/v1/generate", json=body) as source:
        return source.response, [(event.event, event.json()) for event in source.iter_sse()]


def test_the_events_end_with_what_the_json_answer_holds(client: httpx.Client) -> None:
    body = {"class": "cat", "seed": 11, "n": 2, "preset": "fast"}
    _, events = events_of(client, body)
    document = client.post("/v1/generate", json=body).json()
    data = document.pop("data")
    assert [item for name, item in events if name == "image"] == data
    assert events[-1] == ("done", document)
    for item in data:
        steps = [step for name, step in events if name == "step" and step["index"] == item["index"]]
        assert [step["step"] for step in steps] == list(range(1, document["settings"]["steps"] + 1))
        assert [step["known"] for step in steps] == sorted(step["known"] for step in steps)
        assert [step["known"] for step in steps] == [32 - step["tokens"].count(None) for step in steps]
        assert steps[-1]["tokens"] == item["tokens"]
        for earlier, later in pairwise(steps):
            pairs = zip(earlier["tokens"], later["tokens"], strict=True)
            assert all(before in (None, after) for before, after in pairs)


def test_the_answer_has_the_headers_of_a_stream_and_of_every_answer(server: Any) -> None:
    with httpx.Client(base_url=server.url, timeout=60.0, headers={"X-Request-ID": "job-17"}) as client:
        answer, _ = events_of(client, {"class": 0, "steps": 2})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"] == "job-17"
    assert "total;dur=" in answer.headers["server-timing"]


def test_previews_are_pictures_of_steps_and_change_no_token(server: Server) -> None:
    body = {"class": "cat", "seed": 3, "steps": 24}
    with httpx.Client(base_url=server.url, timeout=600.0) as client:
        _, events = events_of(client, {**body, "preview": True})
        data = client.post("/v1/generate", json=body).json()["data"]
    previews = [step for name, step in events if name == "step" and "image" in step]
    assert previews
    assert all(step["step"] < 24 for step in previews)
    for step in previews[:3]:
        assert step["content_type"] == "image/jpeg"
        picture = Image.open(io.BytesIO(base64.b64decode(step["image"])))
        assert (picture.format, picture.size) == ("JPEG", (128, 128))
    assert [item for name, item in events if name == "image"] == data


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"class": "catt"}, {}, 404),
        ({"class": 0, "n": 17}, {}, 413),
        ({"class": 0, "steps": 0}, {}, 422),
        ({"class": 0}, {"X-Request-Timeout-Ms": "1"}, 504),
    ],
)
def test_an_error_before_the_first_step_has_its_own_status(
    client: httpx.Client, body: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    answer = client.post("/v1/generate", json=body, headers={"Accept": "text/event-stream", **headers})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == answer.headers["x-request-id"]


def test_a_client_that_closes_the_stream_costs_no_more_device_time(server: Server) -> None:
    cancelled = {"op": "generate", "stage": "cancelled"}
    before = server.metric("titok_abandoned_total", **cancelled)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=600.0) as client:
            for preview, abandoned in ((False, 2), (True, 4)):
                body = {"class": 0, "n": 2, "steps": 256, "seed": 1, "preview": preview}
                async with aconnect_sse(client, "POST", "/v1/generate", json=body) as source:
                    events = source.aiter_sse()
                    assert (await anext(events)).event == "step"
                    await events.aclose()
                while any(any(lane.values()) for lane in (await client.get("/healthz")).json()["lanes"].values()):
                    pass
                metrics = ""
                while 'titok_requests_in_progress{op="generate"} 0.0' not in metrics:
                    metrics = (await client.get(f"{server.admin_url}/metrics")).text
                assert (
                    await asyncio.to_thread(server.metric, "titok_abandoned_total", **cancelled) == before + abandoned
                )

    asyncio.run(run())


def test_a_stream_in_flight_at_sigterm_is_sent_to_its_end(serve: Callable[..., Any]) -> None:
    server = serve(request_timeout="600", drain_seconds="600")
    server.wait_until_ready()
    with (
        httpx.Client(base_url=server.url, timeout=600.0) as client,
        connect_sse(client, "POST", "/v1/generate", json={"class": 0, "steps": 12}) as source,
    ):
        events = source.iter_sse()
        assert next(events).event == "step"
        server.process.send_signal(signal.SIGTERM)
        names = [event.event for event in events]
    assert names == ["step"] * 11 + ["image", "done"]
    assert server.process.wait(timeout=120) == 0


def test_the_events_are_documented_with_an_example(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    answers = document["paths"]["/v1/generate"]["post"]["responses"]["200"]["content"]
    example = answers["text/event-stream"]["example"]
    answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=example)
    events = {event.event: event.json() for event in EventSource(answer).iter_sse()}
    assert list(events) == ["step", "image", "done"]
    json_example = answers["application/json"]["example"]
    assert json_example == {**events["done"], "data": [events["image"]]}
    assert events["step"]["known"] == len(events["step"]["tokens"]) - events["step"]["tokens"].count(None)
