"""What is sent to exhaust a service is refused, and no process grows by it: real sockets, real bombs."""

from __future__ import annotations

import io
import json
import select
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from service.http.sockets import allow_descriptors
from tests.e2e.conftest import Server, end, start_server

MiB = 1024 * 1024
MOST_GROWTH = 100 * MiB
PATIENCE = 120.0
CONNECTIONS = 500
PNG = {"Content-Type": "image/png"}
POST = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


@pytest.fixture(scope="module")
def bounded() -> Iterator[Server]:
    """One front end, with times short enough to wait for, and room for two of the longest bodies."""
    started = start_server(
        max_batch_size="4",
        generator="off",
        body_timeout="3",
        header_timeout="3",
        max_connections=str(CONNECTIONS),
        body_bytes_in_flight=str(64 * MiB),
    )
    started.wait_until_ready()
    check_service(started)
    yield started
    end(started)


def photograph() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def is_readable(connection: socket.socket, *, seconds: float = 0.0) -> bool:
    """Whether data or its end has arrived within a time; ``select`` takes no descriptors over 1,023."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(1000 * seconds))


def check_service(server: Server) -> None:
    assert httpx.post(f"{server.url}/v1/encode", content=photograph(), headers=PNG, timeout=60).status_code == 200


def memory(pid: int, figure: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{figure}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(figure)


@contextmanager
def no_growth(server: Server) -> Iterator[None]:
    """That the highest resident memory of all processes together, from the system's own mark, stays near what it was, that
    none of them has ended, and that the next good request succeeds.
    """
    pids = server.pids()
    before = sum(memory(pid, "VmRSS") for pid in pids)
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the mark falls to what is resident now
    yield
    grown = sum(memory(pid, "VmHWM") for pid in pids) - before
    assert server.pids() == pids
    check_service(server)
    assert grown < MOST_GROWTH, f"{grown / MiB:.0f} MiB more than idle"


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=PATIENCE) as connection:
        yield connection


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and document of an answer; nothing of it may be missing."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, json.loads(body)


def check_problem(answer: tuple[int, dict[str, str], Any], status: int, slug: str) -> None:
    got, headers, document = answer
    assert (got, document["type"]) == (status, f"urn:titok:problem:{slug}")
    assert headers["content-type"] == "application/problem+json"
    assert document["status"] == status


# --- bombs -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(count: int) -> bytes:
    """Compressed."""
    compressor, block = zlib.compressobj(9), bytes(MiB)
    pieces = [compressor.compress(block) for _ in range(count // MiB)]
    return b"".join([*pieces, compressor.compress(bytes(count % MiB)), compressor.flush()])


def png(width: int, height: int, *, pixels: bytes, depth: int = 1, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def whole_png(side: int) -> bytes:
    """A whole image of one bit a pixel, all black."""
    return png(side, side, pixels=zeros(side * (1 + (side + 7) // 8)))


BOMBS: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "60,000 x 60,000 pixels of one bit, all of them there": (lambda: whole_png(60_000), {413}),
    "more pixels than its header says, 256 MiB of them": (lambda: png(64, 64, pixels=zeros(256 * MiB)), {200, 400}),
    "a text of 256 MiB": (
        lambda: png(64, 64, pixels=zeros(64 * 9), extra=chunk(b"zTXt", b"a\0\0" + zeros(256 * MiB))),
        {200, 400},
    ),
    "a colour profile of 256 MiB": (
        lambda: png(64, 64, pixels=zeros(64 * 9), extra=chunk(b"iCCP", b"a\0\0" + zeros(256 * MiB))),
        {200, 400},
    ),
    "a GIF of 65,535 x 65,535": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;", {400, 413}),
    "a WebP of 16,384 x 16,384": (
        lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
        {413},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_read_without_what_is_packed_in_it(bounded: Server, name: str) -> None:
    make, statuses = BOMBS[name]
    bomb = make()
    assert len(bomb) < 4 * MiB
    with no_growth(bounded):
        answer = httpx.post(f"{bounded.url}/v1/encode", content=bomb, headers=PNG, timeout=PATIENCE)
    assert answer.status_code in statuses, answer.text
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_compressed_body_is_not_unpacked(bounded: Server) -> None:
    packed = zlib.compressobj(9, wbits=31)
    body = b"".join([*(packed.compress(bytes(MiB)) for _ in range(256)), packed.flush()])
    with no_growth(bounded):
        answer = httpx.post(
            f"{bounded.url}/v1/encode", content=body, headers=PNG | {"Content-Encoding": "gzip"}, timeout=PATIENCE
        )
    assert answer.status_code == 415
    assert "gzip" in answer.json()["detail"]


# --- endless and slow ------------------------------------------------------------------------------------------------


def send_endlessly(server: Server, piece: bytes) -> tuple[int, dict[str, str], Any]:
    """The answer to a request that goes on until it is answered."""
    with connected(server) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        while not is_readable(connection):
            connection.sendall(piece)
        return answer_of(connection)


def test_an_endless_body_is_refused_once_it_is_too_long(bounded: Server) -> None:
    with no_growth(bounded):
        check_problem(send_endlessly(bounded, CHUNK), 413, "content-too-large")


def test_many_endless_bodies_together_take_no_more_memory_than_is_set(bounded: Server) -> None:
    with no_growth(bounded), ThreadPoolExecutor(12) as senders:
        answers = list(senders.map(lambda _: send_endlessly(bounded, CHUNK), range(12)))
    slugs = {document["type"].rpartition(":")[2] for _, _, document in answers}
    assert slugs <= {"content-too-large", "too-many-requests", "request-timeout"}
    assert "too-many-requests" in slugs
    for status, headers, _ in answers:
        assert status != 429 or headers["retry-after"] == "1"


def test_a_body_of_a_byte_a_second_is_refused_when_its_time_is_over(bounded: Server) -> None:
    with no_growth(bounded), connected(bounded) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        while not is_readable(connection, seconds=1.0):
            connection.sendall(b"x")
        check_problem(answer_of(connection), 408, "request-timeout")


def test_headers_of_a_byte_a_second_are_refused_when_their_time_is_over(bounded: Server) -> None:
    with no_growth(bounded), connected(bounded) as connection:
        connection.sendall(POST + b"X: ")
        while not is_readable(connection, seconds=1.0):
            connection.sendall(b"x")
        check_problem(answer_of(connection), 408, "request-timeout")


def test_endless_headers_are_refused_once_they_are_too_long(bounded: Server) -> None:
    with no_growth(bounded), connected(bounded) as connection:
        connection.sendall(POST)
        while not is_readable(connection):
            connection.sendall(b"X: " + b"x" * 1000 + b"\r\n")
        check_problem(answer_of(connection), 431, "headers-too-large")


# --- connections -----------------------------------------------------------------------------------------------------


def test_idle_connections_are_closed_for_new_ones(bounded: Server) -> None:
    allow_descriptors(4096)
    address = urlsplit(bounded.url)
    idle: list[socket.socket] = []
    try:
        with no_growth(bounded):
            for _ in range(1000):
                idle.append(socket.create_connection((address.hostname or "", address.port or 0), timeout=PATIENCE))
                if len(idle) % 100 == 0:
                    check_service(bounded)
        closed = sum(1 for connection in idle if is_readable(connection))
        assert closed >= 1000 - CONNECTIONS
    finally:
        for connection in idle:
            connection.close()


def test_a_thousand_requests_that_never_end_are_refused_in_part_and_the_service_recovers(bounded: Server) -> None:
    allow_descriptors(4096)
    address = urlsplit(bounded.url)
    opened: list[socket.socket] = []
    try:
        with no_growth(bounded):
            for _ in range(1000):
                connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=PATIENCE)
                opened.append(connection)
                connection.sendall(POST + b"Content-Length: 1000\r\n\r\nx")
            statuses = [answer_of(connection)[0] for connection in opened]
    finally:
        for connection in opened:
            connection.close()
    assert set(statuses) <= {408, 503}
    assert statuses.count(408) >= CONNECTIONS // 2
