"""What the HTTP servers report of requests that the application does not see."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from starlette.applications import Starlette

from service.http.sockets import listen
from service.processes.http_servers import public_server
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_log_lines import configured

pytestmark = pytest.mark.anyio


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
