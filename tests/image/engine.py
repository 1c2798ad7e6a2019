"""Images and containers with buildah and podman: a storage of its own, no daemon, no registry."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["PHOTOGRAPH", "PROJECT", "Engine", "Service"]

PROJECT = Path(__file__).parents[2]
PHOTOGRAPH = (PROJECT / "docs" / "images" / "photograph.jpg").read_bytes()
READY_SECONDS = 240.0
_CONTAINERS = """
[containers]
# podman's own are higher than some machines allow.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


class Engine:
    """buildah and podman with their files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(_CONTAINERS.format(folder=folder))
        (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
        self.environment = os.environ | {
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        }

    def call(self, *command: str | Path, check: bool = True, seconds: float = 1200) -> subprocess.CompletedProcess[str]:
        """Runs a program. Standard error is part of the message of a failure."""
        ended = subprocess.run(
            command, env=self.environment, cwd=PROJECT, capture_output=True, text=True, timeout=seconds
        )
        assert not check or ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended

    def podman(self, *arguments: str | Path, check: bool = True) -> str:
        """What podman prints."""
        return self.call("podman", *arguments, check=check).stdout.strip()

    def build(self, name: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Builds an image without a network."""
        options = ("--isolation", "oci", "--runtime", "runc", "--network", "none", "--format", "docker")
        return self.call("buildah", "bud", *options, "--tag", name, *arguments, check=check)

    def remove(self) -> None:
        """Ends all containers and deletes everything but the folder itself."""
        self.podman("pod", "rm", "--all", "--force", check=False)
        self.podman("rm", "--all", "--force", "--time", "1", check=False)
        self.podman("volume", "rm", "--all", "--force", check=False)
        self.podman("network", "prune", "--force", check=False)
        self.call("buildah", "rm", "--all", check=False)
        self.podman("rmi", "--all", "--force", check=False)

    @contextmanager
    def service(self, image: str, *options: str, command: Sequence[str] = ()) -> Iterator[Service]:
        """A container with a port of this machine, removed at the end."""
        name = self.podman("run", "--detach", "--publish", "127.0.0.1::8000", *options, image, *command)
        try:
            yield Service(self, name, f"http://{self.podman('port', name, '8000')}")
        finally:
            self.podman("rm", "--force", "--time", "1", name, check=False)


class Service:
    """A container of the service."""

    def __init__(self, engine: Engine, name: str, url: str) -> None:
        self.engine = engine
        self.name = name
        self.url = url

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside."""
        return self.engine.call("podman", "exec", self.name, *command, check=False)

    def log(self) -> str:
        """Its log lines."""
        ended = self.engine.call("podman", "logs", self.name, check=False)
        return ended.stdout + ended.stderr

    def wait_until_ready(self) -> None:
        """Asks the public port, since a process inside takes the CPU time that the start needs; then the health check."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            assert time.monotonic() < deadline, self.log()[-8000:]
            time.sleep(0.2)
        assert self.run("titok", "health").stdout == "ready\n"

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def encode(self) -> str:
        """The code of a photograph."""
        answer = httpx.post(
            f"{self.url}/v1/encode", content=PHOTOGRAPH, headers={"Content-Type": "image/jpeg"}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        code: str = answer.json()["data"][0]["code"]
        return code
