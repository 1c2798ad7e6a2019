"""Processes that die, hang and leave: what the service promises when the machine does its worst."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.sockets import listen

PATIENCE = 120.0
# A slow machine shall be no fault.
PATIENT = {"request_timeout": "300", "drain_seconds": "300", "threads": "1", "max_batch_size": "4"}
JPEG = {"Content-Type": "image/jpeg"}
LONG_GENERATE = {"class": 0, "n": 2, "steps": 64, "seed": 1}


@pytest.fixture
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for the service's sockets, whose paths may have 107 bytes at most: ``tmp_path`` is longer."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def generate_begun(server: Any, client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    """A request whose images are being sampled; another one where a request ended before it was seen to run."""
    while True:
        request = asyncio.create_task(client.post("/v1/generate", json=LONG_GENERATE))
        while not request.done():
            health = (await client.get(f"{server.admin_url}/healthz")).json()
            if health["lanes"]["generate"]["active_images"] > 0 and not request.done():
                return request
        assert (await request).status_code == 200


def client_of(server: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=PATIENCE)


# --- what is there ---------------------------------------------------------------------------------------------------


def test_every_process_names_itself(pair: Any) -> None:
    assert [command_line(pid) for pid in pair.pids()] == [
        "titok: supervisor",
        "titok: front end 0",
        "titok: front end 1",
        "titok: worker cpu",
    ]


def test_only_workers_load_torch(pair: Any) -> None:
    for pid in pair.pids():
        has_torch = "libtorch" in Path(f"/proc/{pid}/maps").read_text()
        assert has_torch == command_line(pid).startswith("titok: worker")


def test_front_ends_share_the_port_and_their_metrics_add_up(pair: Any) -> None:
    labels = {"route": "/livez", "method": "GET", "code": "200"}
    before = pair.metric("titok_http_requests_total", **labels)
    front_ends = [pair.child(f"front end {index}")["pid"] for index in (0, 1)]
    for stopped in front_ends:  # so that the other has to answer
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(3):
            assert httpx.get(f"{pair.url}/livez", timeout=PATIENCE).status_code == 200
        os.kill(stopped, signal.SIGCONT)
    assert pair.metric("titok_http_requests_total", **labels) == before + 6


# --- what dies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "signal"), (signal.SIGSTOP, "hung")])
def test_a_worker_that_is_killed_or_stopped_under_load_is_replaced_and_every_request_answered(
    pair: Any, jpeg: bytes, number: signal.Signals, reason: str
) -> None:
    pair.wait_until_ready()
    before = pair.child("worker cpu")

    async def encode_until(replaced: asyncio.Event, client: httpx.AsyncClient) -> set[int]:
        statuses = set()
        while not replaced.is_set():
            answer = await client.post("/v1/encode", content=jpeg, headers=JPEG)
            statuses.add(answer.status_code)
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        return statuses

    async def run() -> None:
        async with client_of(pair) as client:
            replaced = asyncio.Event()
            load = [asyncio.create_task(encode_until(replaced, client)) for _ in range(4)]
            request = await generate_begun(pair, client)
            os.kill(before["pid"], number)
            answer = await request
            assert answer.status_code == 200
            assert len(answer.json()["data"]) == 2
            replaced.set()
            assert set().union(*await asyncio.gather(*load)) <= {200, 503}

    metric = {"device": "cpu", "reason": reason}
    restarts = pair.metric("titok_worker_restarts_total", **metric)
    asyncio.run(run())
    pair.wait_until_ready()
    after = pair.child("worker cpu")
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    assert pair.metric("titok_worker_restarts_total", **metric) == restarts + 1
    assert pair.metric("titok_worker_up", device="cpu") == 1
    assert httpx.post(f"{pair.url}/v1/encode", content=jpeg, headers=JPEG, timeout=PATIENCE).status_code == 200


def test_a_killed_front_end_comes_back_and_loses_no_count_while_the_port_answers(pair: Any) -> None:
    labels = {"route": "/livez", "method": "GET", "code": "200"}
    before, killed = pair.metric("titok_http_requests_total", **labels), pair.child("front end 0")
    os.kill(killed["pid"], signal.SIGKILL)
    answered = 0
    while (now := pair.child("front end 0"))["state"] != "ready" or now["pid"] == killed["pid"]:
        assert httpx.get(f"{pair.url}/livez", timeout=PATIENCE).status_code == 200
        answered += 1
    assert now["restarts"] == killed["restarts"] + 1
    assert now["last_death"] == "was ended by SIGKILL"
    assert pair.metric("titok_http_requests_total", **labels) == before + answered
    assert pair.metric("titok_front_end_restarts_total", reason="signal") >= 1
    assert pair.metric("titok_requests_in_progress", op="other") == 0


def test_connections_wait_until_a_front_end_is_there_that_can_answer_them(pair: Any) -> None:
    for index in (0, 1):
        os.kill(pair.child(f"front end {index}")["pid"], signal.SIGKILL)
    assert httpx.get(f"{pair.url}/readyz", timeout=PATIENCE).status_code == 200
    pair.wait_until_ready()


def test_a_worker_that_is_in_one_batch_for_too_long_is_replaced(serve: Callable[..., Any], jpeg: bytes) -> None:
    server = serve(**PATIENT | {"max_batch_size": "32"}, batch_timeout="0.01", cache="off")
    server.wait_until_ready()
    body = [("image", ("photograph.jpg", jpeg, "image/jpeg"))] * 32
    stuck = {"device": "cpu", "reason": "stuck"}

    async def run() -> None:
        async with client_of(server) as client:
            request = asyncio.create_task(client.post("/v1/encode", files=body))
            while await asyncio.to_thread(server.metric, "titok_worker_restarts_total", **stuck) == 0:
                if request.done():
                    request = asyncio.create_task(client.post("/v1/encode", files=body))
            assert (await request).status_code in (200, 503)

    asyncio.run(run())
    assert "in one batch for more than 0.01 s" in server.child("worker cpu")["last_death"]


def test_nothing_outlives_a_killed_supervisor_but_the_requests_it_had_accepted(
    serve: Callable[..., Any], runtime_folder: Path
) -> None:
    server = serve(**PATIENT, front_ends="2")
    server.wait_until_ready()
    pids = server.pids()

    async def run() -> httpx.Response:
        async with client_of(server) as client:
            request = await generate_begun(server, client)
            server.process.kill()
            return await request

    assert asyncio.run(run()).status_code == 200
    server.process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert list(runtime_folder.glob("titok-*")) == []
    listen("127.0.0.1", httpx.URL(server.url).port or 0).close()  # nobody holds the port


# --- how it leaves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_drains_as_one_to_the_supervisor(
    serve: Callable[..., Any], runtime_folder: Path, number: signal.Signals
) -> None:
    server = serve(**PATIENT, front_ends="2")
    server.wait_until_ready()
    pids = server.pids()

    async def run() -> httpx.Response:
        async with client_of(server) as client:
            request = await generate_begun(server, client)
            os.killpg(server.process.pid, number)
            return await request

    assert asyncio.run(run()).status_code == 200
    assert server.process.wait(timeout=PATIENCE) == 0
    assert not any(is_running(pid) for pid in pids)
    assert list(runtime_folder.glob("titok-*")) == []


def test_readiness_goes_first_then_answers_end_their_connections_and_a_second_signal_ends_at_once(
    serve: Callable[..., Any],
) -> None:
    server = serve(**PATIENT, shutdown_delay="300")
    server.wait_until_ready()
    pids = server.pids()
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert "connection" not in client.get("/livez").headers
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda health: health["status"] == "draining" and health["processes"][0]["state"] == "draining")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "draining"
        assert answer.headers["connection"] == "close"
        work = client.post("/v1/generate", json={"class": 0, "steps": 1})
        assert work.status_code == 200
        assert work.headers["connection"] == "close"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=PATIENCE) == 1
    assert not any(is_running(pid) for pid in pids)


def test_connections_that_wait_to_be_accepted_at_sigterm_are_served(serve: Callable[..., Any]) -> None:
    server = serve(shutdown_delay="0")
    server.wait_until_ready()
    address = ("127.0.0.1", httpx.URL(server.url).port)
    front_end = server.child("front end 0")["pid"]
    os.kill(front_end, signal.SIGSTOP)
    waiting = [socket.create_connection(address, timeout=PATIENCE) for _ in range(5)]
    for connection in waiting:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not takes_connections(address))
    os.kill(front_end, signal.SIGCONT)
    for connection in waiting:
        with connection, connection.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            assert b"connection: close\r\n" in answer.read().lower()
    assert server.process.wait(timeout=PATIENCE) == 0


def takes_connections(address: tuple[str, Any]) -> bool:
    try:
        socket.create_connection(address, timeout=0.5).close()
    except OSError:
        return False
    return True


def test_no_request_is_lost_at_sigterm_under_load(serve: Callable[..., Any], jpeg: bytes) -> None:
    server = serve(**PATIENT, front_ends="2", cache="off")
    server.wait_until_ready()

    async def load(*, keep_alive: bool) -> int:
        """Sends until the port is closed; gives the number of good answers. Anything else raises."""
        limits = httpx.Limits(max_keepalive_connections=None if keep_alive else 0)
        answered = 0
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:
            while True:
                try:
                    answer = await client.post("/v1/encode", content=jpeg, headers=JPEG)
                except httpx.ConnectError:
                    return answered
                assert answer.status_code == 200
                answered += 1

    async def run() -> list[int]:
        clients = [asyncio.create_task(load(keep_alive=index % 2 == 0)) for index in range(8)]
        encoded = {"route": "/v1/encode", "method": "POST", "code": "200"}
        while await asyncio.to_thread(server.metric, "titok_http_requests_total", **encoded) < 20:
            assert not any(client.done() for client in clients)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*clients)

    assert all(asyncio.run(run()))
    assert server.process.wait(timeout=PATIENCE) == 0
