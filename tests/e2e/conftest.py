"""Real server processes on ports that the system chooses.

The scope of shared servers is the package: they end when a worker goes on to tests of another folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 120.0
# Larger batches need not be tried for a server that lives for one test.
QUICK_START = {"max_batch_size": "4"}
TITOK = Path(sys.executable).with_name("titok")


@dataclass
class Server:
    """A ``titok serve`` process: its addresses, and what it has written."""

    process: subprocess.Popen[str]
    url: str
    admin_url: str
    log: list[str] = field(default_factory=list)
    # One for all questions: each new client reads all certificates of the system, which takes longer than an answer.
    admin: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            verify=False,  # noqa: S501  not TLS
            timeout=START_SECONDS,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
    )

    def wait_until_ready(self) -> None:
        self.until(lambda health: health["status"] == "ready")

    def until(self, condition: Callable[[Any], bool]) -> Any:
        """The first health document of the admin port that meets the condition."""
        deadline = time.monotonic() + START_SECONDS
        while not condition(health := self.health()):
            assert self.process.poll() is None, "".join(self.log)
            assert time.monotonic() < deadline, f"{health}\n{''.join(self.log)}"
            time.sleep(0.05)
        return health

    def health(self) -> Any:
        return self.admin.get(f"{self.admin_url}/healthz").json()

    def child(self, name: str) -> Any:
        """What the health document says of a process, by its name."""
        return child_of(self.health(), name)

    def pids(self) -> list[int]:
        """Of the supervisor and its children."""
        return [self.process.pid, *(child["pid"] for child in self.health()["processes"])]

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 if there is none."""
        text = self.admin.get(f"{self.admin_url}/metrics").text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(sample.value for sample in samples if (sample.name, sample.labels) == (name, labels))


def child_of(health: Any, name: str) -> Any:
    """A process in a health document."""
    return next(child for child in health["processes"] if child["name"] == name)


def start_server(program: Path = TITOK, *, port: str = "0", admin_port: str = "0", **settings: str) -> Server:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TITOK_")}
    if "PYTEST_XDIST_WORKER" in os.environ:  # servers of parallel tests share the cores
        settings = {"threads": "1", **settings}
    settings = {"runtime": "torch", **settings}  # OpenVINO would compile at each start
    environment |= {f"TITOK_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [program, "serve", "--port", port, "--admin-port", admin_port],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_die_with_the_tests,
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


def _die_with_the_tests() -> None:
    """Tests that are killed end no fixture; the system then ends what they started. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end(server: Server) -> None:
    """Two signals end the service at once, with all its processes."""
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(timeout=30)
    finally:
        server.process.kill()
        server.process.wait()
        server.admin.close()
        if server.process.stdout is not None:
            server.process.stdout.close()


def lines(server: Server) -> list[dict[str, Any]]:
    """All but the one on standard output, each parsed."""
    return [json.loads(line) for line in list(server.log) if not line.startswith("TiTok is at ")]


def access_line(server: Server, request_id: str) -> dict[str, Any]:
    """That of a request, which comes just after its answer."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        for line in lines(server):
            if line["event"] == "request" and line["request_id"] == request_id:
                return line
        assert time.monotonic() < deadline, "".join(server.log)


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """The service with the shipped checkpoint, ready; a slow machine needs more time than the default for 256 steps."""
    started = start_server(request_timeout="600")
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture(scope="package")
def exact_server() -> Iterator[Server]:
    """In float32: in bfloat16 an image's last bits depend on how it is computed, and JPEG makes half a level of them."""
    started = start_server(dtype="float32")
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture(scope="package")
def keyed_server() -> Iterator[Server]:
    """A ready service that answers those who send ``first-key`` or ``second-key``."""
    started = start_server(max_batch_size="4", api_keys="first-key, second-key")
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture(scope="module")
def pair() -> Iterator[Server]:
    """Two front ends and a worker, ready; a process is found silent within seconds."""
    started = start_server(
        front_ends="2", cache="off", heartbeat_seconds="3", threads="1", max_batch_size="4", request_timeout="300"
    )
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers with settings of their own; they end with the test."""
    servers: list[Server] = []

    def start(**settings: str) -> Server:
        servers.append(start_server(**(QUICK_START | settings)))
        return servers[-1]

    yield start
    for started in servers:
        end(started)


@pytest.fixture(scope="package")
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
