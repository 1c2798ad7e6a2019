"""Listening sockets: opening them, showing their addresses, closing them without losing a connection."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BACKLOG = 2048  # connections not yet accepted, as uvicorn's own default

_SO_ATTACH_FILTER = 26
# Classic BPF over a TCP segment: load the byte of flags; drop the segment if SYN is set, else pass all of it.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: clients can connect from now on. Raises ``OSError`` with the address in its message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port}: {error.strerror}") from None
    return listener


def url(listener: socket.socket, host: str) -> str:
    """The URL of a listener on ``host``."""
    return url_of(host, listener.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The URL of an address, with a host that can be opened in a browser."""
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def allow_descriptors(count: int) -> None:
    """Raises the limit of open files of this process and its children to ``count``, or as far as permitted."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def refuse_handshakes(listener: socket.socket) -> None:
    """Drops TCP handshakes (SYN) for all processes that share the socket; connections in the backlog stay.

    Closing a listener resets connections in its backlog, and one may arrive between the last ``accept`` and ``close``. Once
    handshakes are dropped, an empty backlog stays empty. The client's system retries after a second and finds the port
    closed, or a new process. Linux only; does nothing elsewhere.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_DROP_SYN)
    described = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # a sandbox may lack the option; the race is then microseconds long
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
