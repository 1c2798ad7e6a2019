"""A real haproxy with the configuration that is shipped, before replicas on ports of this machine."""

from __future__ import annotations

import contextlib
import csv
import random
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.programs import require_program

__all__ = ["CONFIGURATION", "LoadBalancer", "free_port", "load_balancer"]

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
PATIENCE_SECONDS = 120.0
PORTS = range(10_000, 30_000)


def free_port() -> int:
    """One of those that the system gives to no connection, so that it is still free when its owner was replaced."""
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


class LoadBalancer:
    """A running haproxy, and what it says of the replicas."""

    def __init__(self, url: str, control: Path, log: Path) -> None:
        self.url = url
        self.log = log
        self._control = control

    def replicas(self) -> dict[str, dict[str, str]]:
        """Its statistics of each replica, by name; empty until it answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._control))
            except OSError:
                return {}
            connection.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(answer.removeprefix("# ").splitlines())
        return {
            row["svname"]: row
            for row in rows
            if row["pxname"] == "titok" and row["svname"] not in ("FRONTEND", "BACKEND")
        }

    def wait_until_up(self, *names: str) -> None:
        """Until it has found these replicas ready."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(self._is_up(name) for name in names):
            assert time.monotonic() < deadline, f"{self.replicas()}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def _is_up(self, name: str) -> bool:
        replica = self.replicas().get(name, {})
        return replica.get("status") == "UP" and replica.get("check_status") == "L7OK"


@contextlib.contextmanager
def load_balancer(replicas: Sequence[tuple[str, int, int]]) -> Iterator[LoadBalancer]:
    """Of replicas: name, port and admin port of each."""
    program = require_program("haproxy")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        control, log = folder / "admin.sock", folder / "log"
        servers = "".join(
            f"    server {replica} 127.0.0.1:{public} port {admin}\n" for replica, public, admin in replicas
        )
        text = CONFIGURATION.read_text()
        for pattern, here in (
            (r"/run/haproxy/admin\.sock", str(control)),
            (r"bind :80", f"bind 127.0.0.1:{port}"),
            (r"(?m)(^    server .*\n)+", servers),
        ):
            text, replaced = re.subn(pattern, here, text)
            assert replaced == 1, pattern
        (folder / "haproxy.cfg").write_text(text)
        with log.open("w") as output:
            process = subprocess.Popen(
                [program, "-db", "-f", folder / "haproxy.cfg"], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            balancer = LoadBalancer(f"http://127.0.0.1:{port}", control, log)
            balancer.wait_until_up(*(replica for replica, _, _ in replicas))
            yield balancer
        finally:
            process.terminate()
            process.wait(timeout=30)
