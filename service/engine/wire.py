"""Messages between a front end and a worker: length and pickle over a Unix socket, with file descriptors beside them.

The socket lies in a folder that only the service's own user can enter, and both ends are this program; nothing from
outside comes near the pickles. Pixels do not travel: a descriptor of their memory does, once.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service.engine.protocol import Ids, LaneName, RowState, Stepped

__all__ = ["Answer", "Channel", "Failure", "Hello", "Memory", "Request", "Tally"]

_HEADER = struct.Struct("!I")
_MAX_DESCRIPTORS = 1
_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Rows uint8 of ``shape``, known by ``number``; ``is_new``: its descriptor comes with this message."""

    number: int
    shape: tuple[int, ...]
    is_new: bool


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker's device is open; ``info`` describes its models."""

    info: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The worker's device cannot be opened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The front end's answer, with the descriptor of 8 bytes in which the worker counts the jobs that it has begun: they
    outlive it, and tell a job that it died over from one that it never came to.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """See ``service.engine.jobs.Job``."""

    lane: LaneName
    count: int
    deadline: float
    memory: Memory | None
    first: int
    tokens: Ids | None
    rows: Sequence[RowState]


@dataclass(frozen=True, slots=True)
class Answer:
    """See ``service.engine.jobs.Outcome``; images are the first ``count`` rows of ``memory``."""

    seconds: float
    result: Ids | Stepped | None
    memory: Memory | None
    count: int
    error: str | None


class Channel:
    """One end of a connection. Reading and writing may be done by two threads, each by one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def fileno(self) -> int:
        """Of the socket, to be polled."""
        return self._connection.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Raises ``OSError`` if the other end has gone."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        data = memoryview(_HEADER.pack(len(body)) + body)
        sent = socket.send_fds(self._connection, [data], descriptors) if descriptors else 0
        if sent < len(data):  # or a peer that has gone would be an error of a message that reached it
            self._connection.sendall(data[sent:])

    def receive(self) -> tuple[Any, list[int]]:
        """The next message, and the descriptors that came with it. Raises ``EOFError`` or ``OSError``."""
        header, descriptors, _, _ = socket.recv_fds(self._connection, _HEADER.size, _MAX_DESCRIPTORS)
        try:
            header += self._read(_HEADER.size - len(header))
            return pickle.loads(self._read(_HEADER.unpack(header)[0])), descriptors  # noqa: S301  see above
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            received = self._connection.recv_into(view)
            if not received:
                raise EOFError("the other end has gone")
            view = view[received:]
        return bytes(data)

    def shut_down(self) -> None:
        """Wakes a thread that reads or writes."""
        with suppress(OSError):  # it may not be connected any more
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        self._connection.close()
