"""docker-compose.yml, started by podman-compose: the service, Redis and Prometheus. No image of Grafana can be made here."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.e2e.load_balancer import free_port
from tests.image.engine import PROJECT, READY_SECONDS, Engine, Service

STARTED = ("titok", "redis", "prometheus")
PROJECT_NAME = "titok"


class Composed:
    """The started services, by their names in the file."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ports = {name: str(free_port()) for name in ("API_PORT", "PROMETHEUS_PORT")}
        engine.environment |= self.ports

    def compose(self, *arguments: str) -> str:
        file = PROJECT / "docker-compose.yml"
        return self.engine.call("podman-compose", "--project-name", PROJECT_NAME, "--file", file, *arguments).stdout

    def container(self, name: str) -> str:
        label = f"label=com.docker.compose.service={name}"
        return self.engine.podman("ps", "--all", "--quiet", "--filter", label)

    def service(self) -> Service:
        return Service(self.engine, self.container("titok"), f"http://127.0.0.1:{self.ports['API_PORT']}")

    def prometheus(self, query: str) -> list[dict[str, object]]:
        address = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query"
        answer = httpx.get(address, params={"query": query}, timeout=30).json()
        found: list[dict[str, object]] = answer["data"]["result"]
        return found


@pytest.fixture(scope="module")
def composed(engine: Engine, image: str) -> Iterator[Composed]:
    engine.podman("tag", image, f"localhost/{PROJECT_NAME}_titok")
    composed = Composed(engine)
    composed.compose("up", "--detach", "--no-build", *STARTED)
    yield composed
    composed.compose("down", "--volumes")


def test_every_health_check_passes(composed: Composed) -> None:
    for name in STARTED:
        deadline = time.monotonic() + READY_SECONDS
        while composed.engine.call("podman", "healthcheck", "run", composed.container(name), check=False).returncode:
            assert time.monotonic() < deadline, composed.compose("logs", name)
            time.sleep(0.5)


def test_codes_are_cached_in_redis(composed: Composed) -> None:
    service, redis = composed.service(), composed.container("redis")
    deadline = time.monotonic() + READY_SECONDS
    shades = iter(range(256))  # an image that Redis was too slow for is not sent to it again
    while composed.engine.podman("exec", redis, "redis-cli", "dbsize") == "0":
        assert time.monotonic() < deadline, service.log()[-8000:]
        file = io.BytesIO()
        Image.new("L", (128, 128), next(shades)).save(file, "PNG")
        answer = httpx.post(
            f"{service.url}/v1/encode", content=file.getvalue(), headers={"Content-Type": "image/png"}, timeout=60
        )
        assert answer.status_code == 200, answer.text


def test_prometheus_scrapes_the_service_and_loads_the_rules(composed: Composed) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not composed.prometheus('up{job="titok"} == 1 and on (instance) titok_worker_up == 1'):
        assert time.monotonic() < deadline, composed.compose("logs", "prometheus")
        time.sleep(0.5)
    assert composed.prometheus("titok:http_errors:increase1h") or composed.prometheus("ALERTS") == []


def test_it_restarts_what_has_died_and_limits_memory_and_logs(composed: Composed) -> None:
    asked = "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Memory}} {{.HostConfig.LogConfig.Type}}"
    for name in STARTED:
        policy, memory, _ = composed.engine.podman("inspect", "--format", asked, composed.container(name)).split()
        assert policy == "unless-stopped"
        assert int(memory) > 0
