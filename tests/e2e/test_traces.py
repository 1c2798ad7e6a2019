"""OpenTelemetry traces of a running service, as an OTLP collector receives them."""

from __future__ import annotations

import io
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.conftest import START_SECONDS, Server, access_line, end, lines, start_server

pytest.importorskip("opentelemetry.proto")

from tests.e2e.otlp_collector import Collector, Received, collecting

PARENT = "b7ad6b7169203331"
SERVER_KIND = 2


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as started:
        yield started


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[Server]:
    """A ready service that sends its traces to the collector."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        started = start_server(max_batch_size="4", cache="off")
    started.wait_until_ready()
    yield started
    end(started)


def post(server: Server, path: str, *, sampled: bool = True, **request: Any) -> tuple[str, httpx.Response]:
    """Sends a request with a new trace id; returns the id and the response."""
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{PARENT}-{'01' if sampled else '00'}", **request.pop("headers", {})}
    return trace_id, httpx.post(f"{server.url}{path}", headers=headers, timeout=60, **request)


def encode(server: Server, image: bytes, **options: Any) -> tuple[str, httpx.Response]:
    return post(server, "/v1/encode", content=image, headers={"Content-Type": "image/jpeg"}, **options)


def by_name(spans: list[Received]) -> dict[str, Received]:
    return {span.name: span for span in spans}


def test_a_request_is_a_child_span_of_its_caller_and_stages_are_child_spans(
    traced: Server, collector: Collector, jpeg: bytes
) -> None:
    trace_id, answer = encode(traced, jpeg)
    spans = by_name(collector.of(trace_id))
    assert answer.status_code == 200
    assert set(spans) == {"POST /v1/encode", "read", "decode", "queue", "device"}
    request = spans.pop("POST /v1/encode")
    assert (request.kind, request.parent_id) == (SERVER_KIND, PARENT)
    for span in spans.values():
        assert span.parent_id == request.span_id
        assert request.start <= span.start <= span.end <= request.end
    assert spans["queue"].end == spans["device"].start


def test_a_request_has_the_semantic_attributes_and_those_of_the_service(
    traced: Server, collector: Collector, jpeg: bytes
) -> None:
    trace_id, answer = encode(traced, jpeg)
    request = by_name(collector.of(trace_id))["POST /v1/encode"]
    url = httpx.URL(traced.url)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/encode",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/encode",
        "server.address": url.host,
        "server.port": url.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "titok.op": "encode",
        "titok.outcome": "ok",
        "titok.images": 1,
        "titok.request_id": answer.headers["x-request-id"],
    }
    assert expected.items() <= request.attributes.items()
    assert request.resource["service.name"] == "titok-service"
    assert request.resource["deployment.environment.name"] == "tests"


def test_a_response_with_images_has_a_span_for_encoding_them(traced: Server, collector: Collector, jpeg: bytes) -> None:
    tokens = encode(traced, jpeg)[1].json()["data"][0]["tokens"]
    trace_id, _ = post(traced, "/v1/decode", json={"tokens": [tokens]})
    assert {"read", "queue", "device", "encode"} <= set(by_name(collector.of(trace_id)))


def test_a_batch_is_a_span_linked_to_the_requests_in_it(traced: Server, collector: Collector) -> None:
    def send(shade: int) -> str:
        image = io.BytesIO()
        Image.new("RGB", (64, 64), (shade, shade, shade)).save(image, "JPEG")
        return encode(traced, image.getvalue())[0]

    largest = 1
    while largest == 1:  # until a batch holds several requests
        with ThreadPoolExecutor(12) as senders:
            traces = [collector.of(trace_id) for trace_id in senders.map(send, range(0, 240, 20))]
        batches = {span.span_id: span for span in collector.spans if span.name == "batch encode"}
        for spans in traces:
            named = by_name(spans)
            [batch_id] = named["device"].links
            batch = batches[batch_id]
            assert named["POST /v1/encode"].span_id in batch.links
            assert not batch.parent_id
            assert named["device"].attributes["titok.batch.images"] == batch.attributes["titok.batch.images"]
            assert batch.attributes["titok.device"] == "cpu"
            assert len(batch.links) == batch.attributes["titok.batch.images"]
            largest = max(largest, len(batch.links))


def test_generation_has_links_to_a_batch_for_each_step(traced: Server, collector: Collector) -> None:
    trace_id, _ = post(traced, "/v1/generate", json={"class": 0, "n": 1, "steps": 3, "seed": 1})
    spans = collector.of(trace_id)
    generated = next(span for span in spans if span.attributes.get("titok.op") == "generate" and span.name == "device")
    assert generated.attributes["titok.batches"] == 3
    steps = [span for span in collector.spans if span.span_id in generated.links]
    assert [span.name for span in steps] == ["batch generate"] * 3


def test_an_error_sets_the_span_status_and_a_refusal_does_not(traced: Server, collector: Collector) -> None:
    late, _ = post(traced, "/v1/generate", json={"class": 0, "n": 4}, headers={"X-Request-Timeout-Ms": "1"})
    refused, _ = post(traced, "/v1/encode", content=b"<p>", headers={"Content-Type": "text/html"})
    [failed] = [span for span in collector.of(late) if span.kind == SERVER_KIND]
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "504")
    [answered] = [span for span in collector.of(refused) if span.kind == SERVER_KIND]
    assert (answered.is_error, answered.attributes["http.response.status_code"]) == (False, 415)


def test_unsampled_requests_and_health_probes_are_not_traced(traced: Server, collector: Collector, jpeg: bytes) -> None:
    unsampled, _ = encode(traced, jpeg, sampled=False)
    httpx.get(f"{traced.url}/readyz")
    sampled, _ = encode(traced, jpeg)
    collector.of(sampled)
    assert unsampled not in {span.trace_id for span in collector.spans}
    assert not [span for span in collector.spans if "readyz" in span.name]


def test_a_request_without_a_trace_gets_one_and_its_log_line_has_the_id(
    traced: Server, collector: Collector, jpeg: bytes
) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-ID": "untraced"}
    httpx.post(f"{traced.url}/v1/encode", content=jpeg, headers=headers, timeout=60)
    spans = collector.until(lambda spans: any(span.attributes.get("titok.request_id") == "untraced" for span in spans))
    [request] = [span for span in spans if span.attributes.get("titok.request_id") == "untraced"]
    assert not request.parent_id
    line = access_line(traced, "untraced")
    assert [other for other in lines(traced) if "untraced" in other.values()] == [line]
    assert line["trace_id"] == request.trace_id


def test_a_collector_that_does_not_answer_delays_neither_requests_nor_shutdown(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, jpeg: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        server = serve(drain_seconds="1")
        server.wait_until_ready()
        encode(server, jpeg)[1].raise_for_status()
        silent.settimeout(START_SECONDS)
        connection, _ = silent.accept()
        with connection:
            encode(server, jpeg)[1].raise_for_status()
            server.process.send_signal(signal.SIGTERM)
            # Not killed: each front end has 5 seconds more than its drain, the collector ten minutes.
            assert server.process.wait(timeout=START_SECONDS) == 0


def stderr_of(probe: str) -> str:
    """Standard error of a program, which must exit with status 0."""
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_opentelemetry_is_not_imported_without_an_endpoint() -> None:
    stderr_of(
        "import sys, os\n"
        "os.environ.pop('OTEL_EXPORTER_OTLP_ENDPOINT', None)\n"
        "import service.processes.front_end\n"
        "from service.telemetry.tracing import open_tracer\n"
        "assert open_tracer() is None\n"
        # The SDK may be imported: redis-py does so if it is installed.
        "assert 'opentelemetry.exporter' not in sys.modules\n"
        "assert 'service.telemetry.spans' not in sys.modules\n"
    )


def test_a_missing_extra_is_logged_and_the_service_continues() -> None:
    logged = stderr_of(
        "import sys, os\n"
        "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:1'\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from service.telemetry.tracing import open_tracer\n"
        "assert open_tracer() is None\n"
    )
    assert "is not installed (extra 'otel'); in a checkout of the repository, run: make install" in logged
