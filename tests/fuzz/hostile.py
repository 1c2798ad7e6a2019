"""JSON bodies that are made to take long, and requests whose headers arrive in pieces, sent to a real server."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import httpx

__all__ = ["bomb", "fuzz_bombs", "fuzz_split_headers"]

ROUTES = ("encode", "decode", "reconstruct", "generate", "mix", "codes:lookup", "images/generations")
_SLOWEST_SECONDS = 2.0  # of /livez meanwhile
_MEMBERS = (
    "tokens",
    "codes",
    "images",
    "image",
    "sha256",
    "weights",
    "positions",
    "class",
    "prompt",
    "seed",
    "unknown",
)
_VALUES: tuple[Callable[[int], str], ...] = (
    lambda size: "[" + "[]," * (size // 3) + "[]]",
    lambda size: "[" + '"",' * (size // 3) + '""]',
    lambda size: "[" + "1," * (size // 2) + "1]",
    lambda size: "{" + ",".join(f'"{index}":0' for index in range(size // 10)) + "}",
    lambda size: "[" * size,
    lambda size: '{"a":' * (size // 5),
    lambda size: "9" * size,
    lambda size: "1e" + "9" * size,
    lambda size: '"' + "A" * size + '"',
    lambda size: '"' + r"\u0041" * (size // 6) + '"',
    lambda size: " " * size,
    lambda size: '"data:image/png' + ";a=b" * (size // 4) + '"',
)


def bomb(chance: random.Random, size: int) -> bytes:
    """A JSON document of about ``size`` bytes that costs as much as possible."""
    return f'{{"{chance.choice(_MEMBERS)}":{chance.choice(_VALUES)(size)}}}'.encode()


def fuzz_bombs(client: httpx.Client, count: int, *, first_seed: int, size: int) -> tuple[Counter[str], list[str]]:
    """Sends ``count`` JSON bombs of up to ``size`` bytes, and asks for /livez meanwhile. Returns statuses by operation, and
    failures.
    """
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(first_seed, first_seed + count):
        chance = random.Random(number)
        path = f"/v1/{chance.choice(ROUTES)}"
        body = bomb(chance, chance.randrange(size // 2, size))
        slowest = _slowest_while(client, lambda path=path, body=body: _post(client, path, body, statuses, failures))
        if slowest > _SLOWEST_SECONDS:
            failures.append(f"seed {number}: /livez took {slowest:.2f} s during {path} with {body[:60]!r}")
    return statuses, failures


def _post(client: httpx.Client, path: str, body: bytes, statuses: Counter[str], failures: list[str]) -> None:
    try:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    except httpx.TransportError as error:
        failures.append(f"{path} with {body[:60]!r}: {error!r}")
        return
    statuses[f"POST {path} {answer.status_code}"] += 1
    if not 400 <= answer.status_code < 500:
        failures.append(f"{path} with {body[:60]!r}: {answer.status_code}")


def _slowest_while(client: httpx.Client, send: Callable[[], None]) -> float:
    """Runs ``send`` in a thread; returns the seconds of the slowest answer of /livez until it has ended."""
    sending, slowest = threading.Thread(target=send), 0.0
    sending.start()
    while sending.is_alive():
        started = time.monotonic()
        client.get("/livez").raise_for_status()
        slowest = max(slowest, time.monotonic() - started)
    sending.join()
    return slowest


def fuzz_split_headers(
    address: tuple[str, int], count: int, *, first_seed: int, image: bytes, key: str
) -> tuple[Counter[str], list[str]]:
    """Sends ``count`` requests on one connection each, cut into pieces at random: twice the same image, with ``Accept`` on
    several lines and with an ``Upgrade`` at times. All must succeed.
    """
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(first_seed, first_seed + count):
        chance = random.Random(number)
        sent = _encode(chance, image, key, close=False) + _encode(chance, image, key, close=True)
        cuts = [0, *sorted(chance.sample(range(1, len(sent)), chance.randrange(1, 40))), len(sent)]
        with socket.create_connection(address, timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start, end in pairwise(cuts):
                connection.sendall(sent[start:end])
            received = b""
            while piece := connection.recv(65536):
                received += piece
        for head in received.split(b"HTTP/1.1 ")[1:]:
            statuses[f"POST /v1/encode {head[:3].decode()}"] += 1
        if received.count(b"HTTP/1.1 200") != 2:
            failures.append(f"seed {number}: {received[:200]!r}")
    return statuses, failures


def _encode(chance: random.Random, image: bytes, key: str, *, close: bool) -> bytes:
    lines = [
        "Host: x",
        f"X-API-Key: {key}",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(image)}",
        *chance.sample(["Accept: text/html;q=0.1", "Accept: application/json", "Accept: image/*"], 3),
    ]
    if chance.random() < 0.5 and not close:
        lines += ["Connection: Upgrade", f"Upgrade: {chance.choice(['h2c', 'websocket'])}"]
    if close:
        lines.append("Connection: close")
    chance.shuffle(lines)
    named = [chance.choice((str, str.lower, str.upper))(name) + value for name, value in map(_halves, lines)]
    return "\r\n".join(["POST /v1/encode HTTP/1.1", *named, "", ""]).encode() + image


def _halves(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    return name, colon + value
