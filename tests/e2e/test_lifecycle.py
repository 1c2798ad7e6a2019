"""Start, refuse, drain, stop: the service as those who run it see it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.e2e.conftest import Server, end, start_server

PNG = {"Content-Type": "image/png"}
JPEG = {"Content-Type": "image/jpeg"}


def test_a_request_in_flight_at_sigterm_is_answered_and_the_exit_status_is_0(
    serve: Callable[..., Any], jpeg: bytes
) -> None:
    server = serve()
    server.wait_until_ready()

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as client:
            (await client.post("/v1/encode", content=jpeg, headers=JPEG)).raise_for_status()
            body = {"class": 0, "n": 2, "steps": 32, "seed": 1}
            request = asyncio.create_task(client.post("/v1/generate", json=body))
            while (await client.get("/healthz")).json()["lanes"]["generate"]["active_images"] == 0:
                assert not request.done()
            server.process.send_signal(signal.SIGTERM)
            return await request

    answer = asyncio.run(run())
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert server.process.wait(timeout=60) == 0


def test_a_client_that_leaves_costs_no_more_device_time(server: Server) -> None:
    cancelled = {"op": "generate", "stage": "cancelled"}
    before = server.metric("titok_abandoned_total", **cancelled)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as client:
            body = {"class": 0, "n": 2, "steps": 256, "seed": 1}
            request = asyncio.create_task(client.post("/v1/generate", json=body))
            while (await client.get("/healthz")).json()["lanes"]["generate"]["active_images"] == 0:
                assert not request.done()
            request.cancel()
            while (await client.get("/healthz")).json()["lanes"]["generate"]["active_images"] > 0:
                pass

    asyncio.run(run())
    assert server.metric("titok_abandoned_total", **cancelled) == before + 2


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    """A ready service that waits two seconds for a body, and takes no longer ones than two kilobytes."""
    started = start_server(max_batch_size="4", generator="off", body_timeout="2", max_body_bytes="2048")
    started.wait_until_ready()
    yield started
    end(started)


def test_a_body_that_does_not_arrive_is_answered_with_408(limited: Server) -> None:
    port = httpx.URL(limited.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nabc"
        )
        assert connection.recv(12) == b"HTTP/1.1 408"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long_is_refused_by_its_header_or_on_the_way(limited: Server, announced: bool) -> None:
    body = b"x" * 100_000
    content = body if announced else iter([body[:50_000], body[50_000:]])
    answer = httpx.post(f"{limited.url}/v1/encode", content=content, headers=PNG)
    assert answer.status_code == 413
    assert answer.json()["errors"][0]["expected"] == "at most 2048 bytes"
    assert httpx.get(f"{limited.url}/readyz").status_code == 200


def test_keys_are_asked_for_where_keys_are_set_and_signals_of_other_programs_end_nothing(keyed_server: Server) -> None:
    address = f"{keyed_server.url}/v1/models"
    for headers in ({}, {"Authorization": "Bearer third"}, {"X-API-Key": "first-ke"}):
        refused = httpx.get(address, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["type"] == "urn:titok:problem:unauthorized"
        assert refused.headers["www-authenticate"].startswith("Bearer")
    for headers in ({"Authorization": "Bearer second-key"}, {"X-API-Key": "first-key"}):
        assert httpx.get(address, headers=headers).status_code == 200
    pids = keyed_server.pids()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.killpg(keyed_server.process.pid, number)
    assert httpx.get(address, headers={"X-API-Key": "first-key"}).status_code == 200
    assert keyed_server.pids() == pids
    assert not any("first-key" in line or "second-key" in line for line in keyed_server.log)
    for pid in pids:
        assert b"second-key" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_port_that_is_taken_is_named(titok: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run([titok, "serve", "--port", str(port)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "port: Input should be less than or equal to 65535"),
        (["--dtype", "int4"], "dtype: Input should be 'auto', 'float32', 'tf32', 'tf32x3', 'float16' or 'bfloat16'"),
        (["--cache", "redis"], "cache 'redis' needs TITOK_REDIS_URL"),
    ],
)
def test_a_wrong_setting_is_one_line_not_a_traceback(titok: Path, flags: list[str], message: str) -> None:
    ended = subprocess.run([titok, "serve", *flags], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_an_error_that_no_restart_cures_ends_the_service_with_its_message(titok: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # no socket can be in it: those of the service are elsewhere
    folder.mkdir()
    flags = ["--port", "0", "--admin-port", "0", "--tokenizer", "titok-unknown"]
    environment = os.environ | {"TMPDIR": str(folder)}
    ended = subprocess.run([titok, "serve", *flags], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if json.loads(line)["level"] == "error"]
    assert "worker cpu: the device cannot be opened: no tokenizer is called 'titok-unknown'" in line
    assert "Traceback" not in ended.stderr


def test_every_flag_of_serve_is_a_setting_of_the_same_name(titok: Path) -> None:
    usage = subprocess.run([titok, "serve", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]*)", usage)} - {"help"}
    assert flags <= set(Settings.model_fields)
    assert {"port", "admin_port", "tokenizer", "tokenizer_weights", "generator", "devices", "dtype", "cache"} <= flags
