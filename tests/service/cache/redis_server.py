"""A real redis-server on a Unix socket, which tests can stop, kill and restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from tests.programs import require_program

__all__ = ["RedisServer"]

START_SECONDS = 60.0


class RedisServer:
    """One server with the ``options`` of redis-server. A restarted server keeps its folder and address."""

    def __init__(self, folder: Path, *options: str, has_socket: bool = True, configuration: Path | None = None) -> None:
        self._command = require_program("redis-server")
        self._folder = folder
        self._options = [*([str(configuration)] if configuration else ()), *options]
        self.socket = folder / "redis.sock"
        if has_socket:
            self._options += ["--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> RedisServer:
        """Starts an empty server and waits until it answers."""
        self.launch(*more)
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            self.wait_for(client)
        return self

    def launch(self, *more: str) -> None:
        """Starts it."""
        log = self._folder / "redis.log"
        where = ["--dir", str(self._folder), "--logfile", str(log)]
        self._process = subprocess.Popen([self._command, *self._options, *where, *more])

    def wait_for(self, client: redis.Redis) -> None:
        """Waits until a client is answered."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < until, (self._folder / "redis.log").read_text()
                time.sleep(0.01)
            else:
                return

    def is_listening(self) -> bool:
        """Whether it takes connections, perhaps still loading its data."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def client(self) -> redis.Redis:
        """A client for the test itself."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
