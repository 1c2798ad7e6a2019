"""A real server process, on ports the system chooses, for all tests of this folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

START_SECONDS = 120.0
TITOK = Path(sys.executable).with_name("titok")


@dataclass
class Server:
    """A ``titok serve`` process: its addresses, and what it has written."""

    process: subprocess.Popen[str]
    url: str
    admin_url: str
    log: list[str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while httpx.get(f"{self.url}/readyz").status_code != httpx.codes.OK:
            assert self.process.poll() is None, "".join(self.log)
            assert time.monotonic() < deadline, "".join(self.log)
            time.sleep(0.05)


def start_server(**settings: str) -> Server:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TITOK_")}
    environment |= {f"TITOK_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [TITOK, "serve", "--port", "0", "--admin-port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if match := re.search(r"TiTok is at (\S+) .*metrics: (\S+)/metrics", line):
            server = Server(process, match[1], match[2], lines)
            # The pipe is read on, or the server would block on its own log one day.
            threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
            return server
    raise AssertionError(f"the server ended with {process.wait()}: {''.join(lines)}")


def end(server: Server) -> None:
    server.process.kill()
    server.process.wait()
    if server.process.stdout is not None:
        server.process.stdout.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The service with its default settings and the shipped checkpoint, ready."""
    started = start_server()
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers with settings of their own; they end with the test."""
    servers: list[Server] = []

    def start(**settings: str) -> Server:
        servers.append(start_server(**settings))
        return servers[-1]

    yield start
    for started in servers:
        end(started)


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60.0) as opened:
        yield opened


@pytest.fixture(scope="session")
def jpeg(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real photograph."""
    path = tmp_path_factory.mktemp("images") / "photograph.jpg"
    photographs[0].save(path, quality=90)
    return path.read_bytes()


@pytest.fixture(scope="session")
def titok() -> Path:
    """The installed command."""
    return TITOK
