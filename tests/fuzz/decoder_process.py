"""The other end of ``decoder.py``: starts the process, and tells when it has crashed or hangs."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.decoder import Answer

__all__ = ["Crashed", "Decoder"]

MOST_SECONDS = 10.0


class Crashed(Exception):
    """The process has ended, or was ended because it had not answered in time."""


class Decoder:
    """A decoder; after a crash the next image has a new one."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def __call__(self, data: bytes) -> Answer:
        """What became of an image. Raises ``Crashed``."""
        if self._process is None:
            self._process = self._start()
        line = self._exchange(self._process, data)
        if line:
            return Answer(**json.loads(line))
        if line is None:
            self._process.kill()
        code = self._process.wait(MOST_SECONDS)
        self._end()
        self._log.seek(0)
        words = self._log.read()[-2000:].decode(errors="replace")
        reason = f"no answer within {MOST_SECONDS} seconds" if line is None else f"it ended with {code}: {words}"
        raise Crashed(reason)

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], data: bytes) -> bytes | None:
        """The line that answers; empty if the process has ended, None if it says nothing."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(data).to_bytes(4, "big") + data)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(MOST_SECONDS) else None

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )

    def _end(self) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()
