"""Log output of a running service: JSON, or text on a terminal."""

from __future__ import annotations

import base64
import os
import pty
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import START_SECONDS, Server, access_line, end, lines, start_server

KEY = "a-key-nobody-may-see"
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PHOTOGRAPH = {**HEADERS, "Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def logged() -> Iterator[Server]:
    """A ready service with an API key."""
    started = start_server(max_batch_size="4", api_keys=KEY)
    started.wait_until_ready()
    yield started
    end(started)


def test_every_line_is_json_and_names_its_process(logged: Server) -> None:
    processes, deadline = {"supervisor", "front end 0", "worker cpu"}, time.monotonic() + START_SECONDS
    while {line["process"] for line in lines(logged)} != processes:  # lines come a moment later
        assert time.monotonic() < deadline, lines(logged)
    for line in lines(logged):
        assert line["level"] in ("info", "warning")
        assert line["logger"]
        assert line["event"]
        assert line["timestamp"].endswith("Z")


def test_a_request_is_logged_once_with_its_outcome_and_timings(logged: Server, jpeg: bytes) -> None:
    headers = {**PHOTOGRAPH, "X-Request-ID": "first", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = httpx.post(f"{logged.url}/v1/encode", content=jpeg, headers=headers, timeout=60)
    line = access_line(logged, "first")
    assert line | {"trace_id": TRACE, "op": "encode", "route": "/v1/encode", "method": "POST", "status": 200} == line
    assert line | {"level": "info", "outcome": "ok", "images": 1, "cache_hits": 0, "process": "front end 0"} == line
    assert (line["bytes_in"], line["bytes_out"]) == (len(jpeg), len(answer.content))
    assert set(line["stages_ms"]) == {"read", "cache", "preprocess", "queue", "device"}
    assert all(0 <= spent <= line["duration_ms"] for spent in line["stages_ms"].values())
    httpx.get(f"{logged.url}/v1/models", headers={**HEADERS, "X-Request-ID": "after"})
    access_line(logged, "after")
    assert [line.get("request_id") for line in lines(logged)].count("first") == 1


def test_cache_hits_are_logged(logged: Server, jpeg: bytes) -> None:
    for request_id in ("once", "again"):
        headers = {**PHOTOGRAPH, "X-Request-ID": request_id}
        httpx.post(f"{logged.url}/v1/encode", content=jpeg, headers=headers, timeout=60).raise_for_status()
    line = access_line(logged, "again")
    assert (line["images"], line["cache_hits"]) == (1, 1)
    assert "device" not in line["stages_ms"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/v1/encode", HEADERS | {"Content-Type": "text/html"}, 415), ("/v1/encode", {}, 401), ("/nowhere", HEADERS, 404)],
    ids=["unsupported", "no key", "no route"],
)
def test_a_refused_request_is_logged_as_refused(
    logged: Server, path: str, headers: dict[str, str], status: int
) -> None:
    request_id = f"refused-{status}"
    httpx.post(f"{logged.url}{path}", content=b"<p>", headers={**headers, "X-Request-ID": request_id})
    line = access_line(logged, request_id)
    assert (line["status"], line["outcome"], line["level"]) == (status, "refused", "info")
    assert line["route"] == ("unmatched" if status == 404 else path)


def test_a_5xx_response_is_logged_as_a_warning(logged: Server) -> None:
    headers = {**HEADERS, "X-Request-ID": "late", "X-Request-Timeout-Ms": "1"}
    answer = httpx.post(f"{logged.url}/v1/generate", json={"class": 0, "n": 4}, headers=headers, timeout=60)
    assert answer.status_code == 504
    line = access_line(logged, "late")
    assert (line["status"], line["outcome"], line["level"]) == (504, "failed", "warning")


def test_a_client_that_disconnects_is_logged_as_gone(logged: Server) -> None:
    url = httpx.URL(logged.url)
    head = (
        f"POST /v1/encode HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\nContent-Length: 100\r\n"
        f"Authorization: Bearer {KEY}\r\nX-Request-ID: gone\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + b"\xff\xd8\xff")
    line = access_line(logged, "gone")
    assert (line["status"], line["outcome"], line["bytes_in"]) == (499, "client_gone", 3)


def test_health_probes_are_not_logged(logged: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        httpx.get(f"{logged.url}{path}", headers={"X-Request-ID": "probe"})
    httpx.get(f"{logged.url}/v1/models", headers={**HEADERS, "X-Request-ID": "no-probe"})
    access_line(logged, "no-probe")
    assert "probe" not in [line.get("request_id") for line in lines(logged)]


def test_keys_and_images_are_not_logged(logged: Server, jpeg: bytes) -> None:
    headers = {**HEADERS, "X-Request-ID": "secret"}
    encoded = base64.b64encode(jpeg).decode()
    answer = httpx.post(f"{logged.url}/v1/encode", json={"image": encoded}, headers=headers, timeout=60)
    code = answer.raise_for_status().json()["data"][0]["code"]
    name = answer.json()["model"]
    picture = {**HEADERS, "X-Request-ID": "picture"}
    httpx.get(f"{logged.url}/v1/images/{name}/{code}.jpg", headers=picture, timeout=60).raise_for_status()
    line = access_line(logged, "picture")
    assert line["route"] == "/v1/images/{tokenizer}/{code}.{extension}"
    text = "".join(logged.log)
    for secret in (KEY, "Bearer", code, encoded[:40]):
        assert secret not in text


def test_log_lines_on_a_terminal_are_text(titok: Path) -> None:
    ours, theirs = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [titok, "serve", "--port", str(taken.getsockname()[1]), "--admin-port", "0"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            text = read_terminal(ours)
            assert process.wait(timeout=START_SECONDS) == 1
    assert "cannot listen" in text
    assert "supervisor" in text
    assert "{" not in text


def read_terminal(descriptor: int) -> str:
    """All output until the other end is closed; a terminal then raises ``OSError``."""
    written = b""
    with open(descriptor, "rb", buffering=0) as terminal:
        while True:
            try:
                chunk = terminal.read(4096)
            except OSError:
                chunk = b""
            if not chunk:
                return written.decode()
            written += chunk
