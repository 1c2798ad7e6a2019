"""The HTTP servers as the settings configure them."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.http.sockets import listen
from service.processes.http_servers import public_server
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_log_lines import configured

pytestmark = pytest.mark.anyio


async def echo(request: Request) -> JSONResponse:
    return JSONResponse([request.client and request.client.host, str(request.base_url)])


async def answer_to(request: bytes, app: Starlette, host: str, **settings: Any) -> tuple[str, Any]:
    """Head and body of the answer of a server on ``host`` to a client at 127.0.0.1."""
    with listen(host, 0) as listener:
        server = public_server(app, listener, Settings(shutdown_delay=0, **settings), Metrics())
        running = asyncio.create_task(server.run_until_stopped())
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        server.stop_accepting(shared=False)
        await asyncio.wait_for(running, 60)
    return head.decode(), json.loads(body)


@pytest.mark.parametrize(
    ("settings", "host", "expected"),
    [
        ({}, "127.0.0.1", ["127.0.0.1", "http://x/"]),
        ({}, "::", ["127.0.0.1", "http://x/"]),
        ({"trusted_proxies": "10.0.0.0/8"}, "127.0.0.1", ["127.0.0.1", "http://x/"]),
        ({"trusted_proxies": "10.0.0.0/8,127.0.0.1"}, "127.0.0.1", ["192.0.2.7", "https://x/"]),
        ({"trusted_proxies": "127.0.0.0/8"}, "::", ["192.0.2.7", "https://x/"]),
        ({"trusted_proxies": "*", "root_path": "/titok"}, "127.0.0.1", ["198.51.100.1", "https://x/titok/"]),
    ],
    ids=["nobody", "nobody, IPv6 socket", "another", "two", "a network, IPv6 socket", "all, with a prefix"],
)
async def test_only_trusted_proxies_state_the_address_and_scheme_of_a_client(
    settings: dict[str, Any], host: str, expected: list[str]
) -> None:
    request = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"  # the last line is the proxy's own
    )
    assert (await answer_to(request, Starlette(routes=[Route("/", echo)]), host, **settings))[1] == expected


async def test_a_request_that_the_server_refuses_is_counted_and_logged() -> None:
    metrics = Metrics()
    with configured(error := io.StringIO()), listen("127.0.0.1", 0) as listener:
        server = public_server(Starlette(), listener, Settings(shutdown_delay=0), metrics)
        running = asyncio.create_task(server.run_until_stopped())
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"not HTTP\r\n\r\n")
        head = (await reader.read()).partition(b"\r\n\r\n")[0].decode()
        writer.close()
        server.stop_accepting(shared=False)
        await asyncio.wait_for(running, 60)
    assert head.startswith("HTTP/1.1 400")
    labels = {"route": "unmatched", "method": "other", "code": "400"}
    assert metrics.registry.get_sample_value("titok_http_requests_total", labels) == 1
    [line] = [json.loads(line) for line in error.getvalue().splitlines()]
    assert (line["event"], line["status"], line["outcome"]) == ("request", 400, "refused")
    assert f"X-Request-ID: {line['request_id']}" in head
