"""Messages between a front end and a worker: length-prefixed pickles over a Unix socket, with file descriptors.

The socket is in a folder that only the service's user can enter, and both ends run this program: no pickle comes from
outside. Pixels stay in shared memory, whose descriptor is sent once.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service.engine.jobs import Job, Outcome

_HEADER = struct.Struct("!I")
_MAX_DESCRIPTORS = 1
_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Shared rows uint8 of ``shape``, identified by ``number``; ``is_new``: the descriptor comes with this message."""

    number: int
    shape: tuple[int, ...]
    is_new: bool


@dataclass(frozen=True, slots=True)
class DeviceReady:
    """The worker has opened its device; ``info`` describes its models."""

    info: Any


@dataclass(frozen=True, slots=True)
class DeviceFailure:
    """The worker cannot open its device."""

    reason: str


@dataclass(frozen=True, slots=True)
class StartedCounter:
    """The front end's reply to ``DeviceReady``, with the descriptor of 8 bytes in which the worker counts the jobs it has
    started. They outlive the worker and tell a job it died running from one it had not started.
    """


@dataclass(frozen=True, slots=True)
class JobMessage:
    """A job without its block, which is in ``memory``."""

    job: Job
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome. Images are not part of it: they are the first ``count`` rows of ``memory``."""

    outcome: Outcome
    memory: Memory | None
    count: int


class RemoteDeviceError(Exception):
    """The text of an error that a device raised in the worker; only the text is sent, as not every error can be pickled."""


def _check_descriptors(flags: int) -> None:
    if flags & socket.MSG_CTRUNC:  # the system dropped a descriptor that this process has no room for
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Channel:
    """One end of a connection. One thread may read while another writes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._connection.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Raises ``OSError`` if the other end is closed."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        data = memoryview(_HEADER.pack(len(body)) + body)
        sent = socket.send_fds(self._connection, [data], descriptors) if descriptors else 0
        if sent < len(data):  # sending nothing could fail although the whole message was delivered
            self._connection.sendall(data[sent:])

    def receive(self) -> tuple[Any, list[int]]:
        """Returns the next message and the descriptors that came with it. Raises ``EOFError`` or ``OSError``."""
        header, descriptors, flags, _ = socket.recv_fds(self._connection, _HEADER.size, _MAX_DESCRIPTORS)
        try:
            _check_descriptors(flags)
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
                raise EOFError("the other end has closed the connection")
            view = view[received:]
        return bytes(data)

    def shut_down(self) -> None:
        """Wakes a thread that reads or writes."""
        with suppress(OSError):  # not connected any more
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        self._connection.close()
