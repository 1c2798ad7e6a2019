"""Listening sockets."""

from __future__ import annotations

import socket
import sys

import pytest

from service.http.sockets import listen, refuse_handshakes, url


def test_the_url_of_a_listener_can_be_opened() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::1", "[::1]")):  # noqa: S104
        try:
            listener = listen(host, 0)
        except OSError:
            pytest.skip(f"no {host} on this machine")
        with listener:
            assert url(listener, host) == f"http://{shown}:{listener.getsockname()[1]}"


@pytest.mark.skipif(sys.platform != "linux", reason="handshakes are dropped on Linux only")
def test_a_listener_that_refuses_handshakes_keeps_its_connections() -> None:
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=60) as early:
            refuse_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            early.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
