"""The sockets that clients connect to: opened before anything is loaded, closed without losing a connection."""

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

__all__ = ["allow_descriptors", "listen", "refuse_handshakes", "url", "url_of"]

BACKLOG = 2048  # connections not yet accepted, as uvicorn's own default

_SO_ATTACH_FILTER = 26
# Classic BPF over a TCP segment: load the byte of flags; drop the segment if SYN is set, else pass all of it.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)


def listen(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that whoever reads the printed address can connect at once.

    Raises ``OSError`` with the address in its message.
    """
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
    """The address as a person would type it."""
    return url_of(host, listener.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The same of whatever listens there."""
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def allow_descriptors(count: int) -> None:
    """Raises the number of files and sockets that this process, and those it starts, may have open, as far as it may."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def refuse_handshakes(listener: socket.socket) -> None:
    """Begins no new connection and lets those that have begun arrive, whoever else holds the socket.

    Closing a listener resets what waits in its backlog, and between the last ``accept`` and ``close`` there is always
    room for one more. Once handshakes are refused, an empty backlog stays empty. A refused client's system tries again
    after a second and finds the port closed, or the service's successor. Elsewhere than on Linux this does nothing.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_DROP_SYN)
    described = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # a sandbox may lack the option; what is left is a chance of microseconds
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
