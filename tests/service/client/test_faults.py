"""Both clients against a real server that rejects, disconnects, stalls and sends wrong responses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from service.client import (
    AsyncTiTokClient,
    BadRequest,
    ConnectionFailed,
    DeadlineExceeded,
    Encoded,
    RetryPolicy,
    ServiceDeadlineExceeded,
    TiTokClient,
    TooManyRequests,
    Unavailable,
    UnexpectedAnswer,
)
from tests.service.client.faulty_server import (
    FaultyServer,
    Handler,
    Received,
    Reply,
    answer,
    cut,
    faulty_server,
    problem,
    reset,
    silence,
    trickle,
)
from tests.service.client.test_events import DONE, IMAGE, STEP, wire

Ask = Callable[..., Any]

QUICK = RetryPolicy(tries=4, first_delay=0.001)
EVENTS = "text/event-stream"
LIMITS = {"max_body_bytes": 3000, "max_pixels": 10, "max_images": 3, "max_generate": 2}
MODEL = {
    "id": "m",
    "revision": "r",
    "image_size": 8,
    "num_tokens": 2,
    "min_tokens": 2,
    "kind": "vq",
    "latents": {"shape": [2, 4], "dtypes": ["float32", "float16"]},
    "codebook_size": 16,
    "bits_per_token": 4,
    "code_bytes": 1,
    "code_characters": 2,
    "precision": {},
    "generator": None,
    "limits": LIMITS,
}


def encoded(count: int, first: int = 0) -> dict[str, Any]:
    size = {"width": 1, "height": 1}
    items = [
        {"index": i, "tokens": [first + i], "code": "A", "original_size": size, "cached": False} for i in range(count)
    ]
    return {"model": "m", "revision": "r", "num_tokens": 1, "codebook_size": 16, "data": items}


ONE = answer(encoded(1))


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes one call with a new client."""

    def ask(url: str, method: str, *arguments: Any, keywords: dict[str, Any] | None = None, **options: Any) -> Any:
        options = {"retry": QUICK, **options}
        if request.param == "blocking":
            with TiTokClient(url, **options) as client:
                result = getattr(client, method)(*arguments, **(keywords or {}))
                return list(result) if method == "generate_stream" else result

        async def run() -> Any:
            async with AsyncTiTokClient(url, **options) as client:
                result = getattr(client, method)(*arguments, **(keywords or {}))
                return [event async for event in result] if method == "generate_stream" else await result

        return asyncio.run(run())

    return ask


@pytest.mark.parametrize(
    "fault",
    [
        problem(429, "too-many-requests", Retry_After="0"),
        problem(503, "unavailable"),
        answer(b"<html>", status=502, content_type="text/html"),
        reset,
        cut(b'{"data"'),
    ],
    ids=["429", "503", "a proxy's 502", "reset", "cut off"],
)
def test_transient_faults_are_retried_until_success(ask: Ask, fault: Reply) -> None:
    with faulty_server(fault, fault, ONE) as server:
        result = ask(server.url, "encode", b"image")
        assert isinstance(result, Encoded)
        assert [(request.path, request.body) for request in server.received] == [("/v1/encode", b"image")] * 3


def test_retries_wait_for_retry_after(ask: Ask) -> None:
    with faulty_server(problem(429, "too-many-requests", Retry_After="1"), ONE) as server:
        ask(server.url, "encode", b"image")
        first, second = server.received
        assert second.at - first.at >= 1.0


def test_a_lasting_fault_is_raised_with_its_problem_document(ask: Ask) -> None:
    with faulty_server(problem(503, "unavailable")) as server:
        with pytest.raises(Unavailable, match="it is unavailable") as raised:
            ask(server.url, "encode", b"image")
        assert len(server.received) == QUICK.tries
    error = raised.value
    assert (error.type, error.status, error.request_id) == ("urn:titok:problem:unavailable", 503, "id-1")
    assert error.document["title"] == "unavailable"


def test_a_permanent_error_is_raised_at_once(ask: Ask) -> None:
    with faulty_server(problem(400, "undecodable-image"), ONE) as server:
        with pytest.raises(BadRequest):
            ask(server.url, "encode", b"image")
        assert len(server.received) == 1


def test_a_refused_connection_raises_connection_failed(ask: Ask) -> None:
    with faulty_server(ONE) as server:
        url = server.url
    with pytest.raises(ConnectionFailed, match=url):
        ask(url, "encode", b"image")


@pytest.mark.parametrize("fault", [silence, trickle])
def test_an_endless_response_raises_deadline_exceeded(ask: Ask, fault: Reply) -> None:
    with faulty_server(fault) as server, pytest.raises(DeadlineExceeded, match=r"within 0\.2 seconds"):
        ask(server.url, "encode", b"image", timeout=0.2)


def test_no_delay_goes_beyond_the_deadline(ask: Ask) -> None:
    with faulty_server(problem(429, "too-many-requests", Retry_After="3600")) as server:
        with pytest.raises(TooManyRequests) as raised:
            ask(server.url, "encode", b"image", timeout=30.0)
        assert raised.value.retry_after == 3600


def test_a_504_is_a_deadline_exceeded(ask: Ask) -> None:
    with faulty_server(problem(504, "deadline-exceeded")) as server:
        with pytest.raises(DeadlineExceeded) as raised:
            ask(server.url, "encode", b"image")
        assert isinstance(raised.value, ServiceDeadlineExceeded)


def test_every_attempt_sends_remaining_time_key_and_user_agent(ask: Ask) -> None:
    with faulty_server(problem(503, "unavailable"), ONE) as server:
        ask(server.url, "encode", b"image", timeout=30.0, api_key="key")
        left = [int(request.headers["x-request-timeout-ms"]) for request in server.received]
        assert 0 < left[1] <= left[0] <= 30_000
        assert {request.headers["authorization"] for request in server.received} == {"Bearer key"}
        assert server.received[0].headers["user-agent"].startswith("titok-client/")


@pytest.mark.parametrize(
    "lie",
    [answer(b"hello"), answer({"data": []}), answer(encoded(2)), answer({"detail": "no"}, status=404)],
    ids=["no JSON", "no members", "other images", "another service's 404"],
)
def test_a_response_of_another_service_raises_unexpected_answer(ask: Ask, lie: Reply) -> None:
    with faulty_server(lie) as server, pytest.raises(UnexpectedAnswer, match="not an answer of a TiTok service"):
        ask(server.url, "encode", b"image")


def test_calls_share_a_connection(ask: Ask) -> None:
    with faulty_server(answer({"data": [MODEL]}), answer({"model": "m", "data": []})) as server:
        assert ask(server.url, "classes") == []
        assert len(server.received) == 2
        assert server.connections == 1


def numbers(received: Received) -> list[int]:
    """The numbers in the images of a form."""
    parts = received.body.split(b"\r\n\r\n")[1:]
    return [int(part.partition(b";")[0]) for part in parts]


def numbered(number: int, length: int = 10) -> bytes:
    return f"{number};".encode().ljust(length, b".")


def service(handler: Handler) -> None:
    """A service with the limits LIMITS that encodes each image as its number."""
    if handler.path == "/v1/models":
        answer({"data": [MODEL]})(handler)
        return
    images = numbers(handler.seen)
    answer(encoded(len(images), first=images[0]))(handler)


def test_a_long_list_is_split_by_max_images_and_returned_in_order(ask: Ask) -> None:
    done: list[tuple[int, int | None]] = []
    with faulty_server(service) as server:
        images = [numbered(number) for number in range(11)]
        results = ask(server.url, "encode", images, keywords={"progress": lambda *figures: done.append(figures)})
        assert [result.tokens for result in results] == [(number,) for number in range(11)]
        sizes = sorted(len(numbers(request)) for request in server.received[1:])
        assert sizes == [2, 3, 3, 3]
    assert done == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_large_images_are_split_by_max_body_bytes(ask: Ask) -> None:
    with faulty_server(service) as server:
        ask(server.url, "encode", [numbered(number, 1200) for number in range(5)])
        bodies = [request.body for request in server.received[1:]]
        assert len(bodies) == 3
        assert max(map(len, bodies)) <= LIMITS["max_body_bytes"]


def test_a_generator_of_images_is_read_lazily(ask: Ask) -> None:
    taken: list[int] = []
    held = threading.Event()

    def images() -> Any:
        for number in range(60):
            taken.append(number)
            yield numbered(number)

    def hold(handler: Handler) -> None:
        if handler.path != "/v1/models":
            if numbers(handler.seen)[0] == 0:
                # The first response waits for the second request, so the client has to read ahead.
                held.wait()
            else:
                held.set()
        service(handler)

    most: list[int] = []
    with faulty_server(hold) as server:
        keywords = {"progress": lambda done, _: most.append(len(taken) - done)}
        results = ask(server.url, "encode", images(), keywords=keywords, concurrency=2)
    assert len(results) == 60
    assert max(most) <= 3 * 3 + 1  # two requests sent, one prepared, and the first image of the next one


def test_an_empty_list_gives_an_empty_list(ask: Ask) -> None:
    with faulty_server(service) as server:
        assert ask(server.url, "encode", []) == []


def test_an_error_has_the_index_of_the_broken_image(ask: Ask) -> None:
    def broken(handler: Handler) -> None:
        if handler.path == "/v1/models" or 7 not in numbers(handler.seen):
            service(handler)
            return
        place = numbers(handler.seen).index(7)
        document = {"detail": "broken", "errors": [{"pointer": f"body/{place}", "detail": "broken"}]}
        answer(document, status=400, content_type="application/problem+json")(handler)

    with faulty_server(broken) as server:
        with pytest.raises(BadRequest) as raised:
            ask(server.url, "encode", [numbered(number) for number in range(11)])
        assert raised.value.index == 7
        assert str(raised.value).endswith("(item 7 of the list)")


def test_generation_is_split_with_consecutive_seeds(ask: Ask) -> None:
    def generator(handler: Handler) -> None:
        if handler.path == "/v1/models":
            service(handler)
            return
        asked = json.loads(handler.seen.body)
        items = [{**IMAGE, "index": i, "seed": asked["seed"] + i} for i in range(asked["n"])]
        answer({**DONE, "data": items})(handler)

    with faulty_server(generator) as server:
        images = ask(server.url, "generate", "cat", keywords={"n": 5, "seed": 10, "steps": 2})
        assert [(image.index, image.seed) for image in images] == [(i, 10 + i) for i in range(5)]
        drawn = ask(server.url, "generate", None, keywords={"n": 3})
        assert [image.seed - drawn[0].seed for image in drawn] == [0, 1, 2]
        bodies = [json.loads(request.body) for request in server.received if request.path == "/v1/generate"]
        assert all(body["n"] <= 2 for body in bodies)
        assert {"class": "cat", "n": 2, "seed": 10, "steps": 2} in bodies


def test_all_attempts_use_the_same_random_seed(ask: Ask) -> None:
    with faulty_server(reset, problem(503, "unavailable"), answer({**DONE, "data": [IMAGE]})) as server:
        ask(server.url, "generate", "cat")
        assert len({json.loads(request.body)["seed"] for request in server.received}) == 1


def test_a_stream_is_retried_before_its_first_event(ask: Ask) -> None:
    whole = answer(wire(("step", STEP), ("image", IMAGE), ("done", DONE)), content_type=EVENTS)
    with faulty_server(problem(429, "too-many-requests", Retry_After="0"), reset, whole) as server:
        step, image = ask(server.url, "generate_stream", "cat")
        assert (step.step, image.seed) == (1, 5)
        assert server.received[0].headers["accept"] == EVENTS


def test_a_stream_is_not_retried_after_its_first_event(ask: Ask) -> None:
    with faulty_server(cut(wire(("step", STEP)), content_type=EVENTS)) as server:
        with pytest.raises(ConnectionFailed):
            ask(server.url, "generate_stream", "cat")
        assert len(server.received) == 1


def test_a_stalled_stream_raises_deadline_exceeded(ask: Ask) -> None:
    def stall(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", EVENTS)
        handler.end_headers()
        handler.wfile.write(wire(("step", STEP)))
        silence(handler)

    with faulty_server(stall) as server, pytest.raises(DeadlineExceeded):
        ask(server.url, "generate_stream", "cat", timeout=0.3)


def test_leaving_a_stream_closes_the_connection() -> None:
    gone = threading.Event()

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", EVENTS)
        handler.end_headers()
        handler.wfile.write(wire(("step", STEP)))
        silence(handler)
        gone.set()

    with faulty_server(endless) as server, TiTokClient(server.url) as client:
        for _ in client.generate_stream("cat"):
            break
        assert gone.wait(60)


def test_cancelling_a_call_closes_the_connection() -> None:
    reached, gone = threading.Event(), threading.Event()

    def endless(handler: Handler) -> None:
        reached.set()
        silence(handler)
        gone.set()

    async def run(server: FaultyServer) -> None:
        async with AsyncTiTokClient(server.url) as client:
            call = asyncio.create_task(client.encode(b"image"))
            await asyncio.to_thread(reached.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(gone.wait, 60)

    with faulty_server(endless) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("127.0.0.1:8000", {}, "begins with http"),
        ("http://x", {"timeout": 0}, "more than 0 seconds"),
        ("http://x", {"concurrency": 0}, "concurrency must be at least 1"),
    ],
)
def test_invalid_options_raise(url: str, options: dict[str, Any], message: str) -> None:
    for client in (TiTokClient, AsyncTiTokClient):
        with pytest.raises(ValueError, match=message):
            client(url, **options)
