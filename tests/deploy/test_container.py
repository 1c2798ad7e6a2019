"""The image and the compose files, as far as they can be held to their promises without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.settings import Settings
from tests.e2e.conftest import Server, end, start_server

PROJECT = Path(__file__).parents[2]
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_dockerfile_has_no_lint() -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), PROJECT / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout


def test_the_image_runs_the_command_as_an_unprivileged_user() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^(USER|ENTRYPOINT|CMD) (.*)", last, re.MULTILINE) == [
        ("USER", "10001"),
        ("ENTRYPOINT", '["titok"]'),
        ("CMD", '["serve"]'),
    ]
    assert not re.search(r"apt-get|pip install|build-essential|gcc", last)


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {
        source for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]
    }
    assert sources == kept
    assert all((PROJECT / source).exists() for source in sources)


@pytest.mark.parametrize(
    "name", ["docker-compose.yml", "deploy/compose.gpu.yml", "deploy/compose.traces.yml", "deploy/compose.keys.yml"]
)
def test_a_compose_file_is_valid_by_the_schema_of_the_compose_specification(name: str) -> None:
    checked = check_compose(PROJECT / name)
    assert checked.returncode == 0, checked.stdout


def test_a_misspelt_key_of_a_compose_file_is_found(tmp_path: Path) -> None:
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text((PROJECT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert "'readonly' was unexpected" in check_compose(misspelt).stdout


def check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_read_only_without_root_and_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["user"].partition(":")[0] != "0"
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert_restarts_within_bounds(service)
    for other, wanted in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert wanted == {"condition": "service_healthy"}


def assert_restarts_within_bounds(service: dict[str, Any]) -> None:
    """What fails is started again, and neither memory nor log lines grow without end."""
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_services_of_overrides_restart_within_bounds() -> None:
    for name in ("gpu", "traces", "keys"):
        override = yaml.safe_load((PROJECT / "deploy" / f"compose.{name}.yml").read_text())["services"]
        for brought in set(override) - set(SERVICES):
            assert_restarts_within_bounds(override[brought])


def test_image_and_compose_ask_the_service_whether_it_is_ready() -> None:
    command = json.dumps(SERVICES["titok"]["healthcheck"]["test"][1:])
    assert command == '["titok", "health"]'
    assert re.findall(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.MULTILINE) == [command]


def test_a_service_that_downloads_weights_for_minutes_is_not_unhealthy() -> None:
    [seconds] = re.findall(r"--start-period=(\d+)s", DOCKERFILE)
    assert SERVICES["titok"]["healthcheck"]["start_period"] == f"{seconds}s"
    assert int(seconds) >= 600  # as the startupProbe of Kubernetes


def test_the_admin_port_is_open_to_prometheus_where_it_is_needed_and_nowhere_else() -> None:
    assert SERVICES["titok"]["environment"]["TITOK_ADMIN_HOST"] == "0.0.0.0"  # noqa: S104
    assert "TITOK_ADMIN_HOST" not in DOCKERFILE
    assert Settings().admin_host == "127.0.0.1"


def test_only_the_public_port_is_published_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not [port for port in ports if port.endswith(":8001")]


def test_every_mounted_folder_is_there_and_every_volume_is_declared() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (PROJECT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_gpu_override_changes_what_is_there_and_reserves_devices() -> None:
    override = yaml.safe_load((PROJECT / "deploy" / "compose.gpu.yml").read_text())["services"]
    [reserved] = override["titok"]["deploy"]["resources"]["reservations"]["devices"]
    assert (reserved["driver"], reserved["capabilities"]) == ("nvidia", ["gpu"])
    assert set(override) - set(SERVICES) == {"dcgm-exporter"}


def test_the_traces_override_starts_a_collector_and_sends_traces_to_it() -> None:
    override = yaml.safe_load((PROJECT / "deploy" / "compose.traces.yml").read_text())["services"]
    endpoint = httpx.URL(override["titok"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert set(override) - set(SERVICES) == {endpoint.host}
    jaeger = override[endpoint.host]
    assert jaeger["read_only"]
    assert jaeger["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in jaeger["ports"])


def test_the_keys_override_has_the_service_ask_for_the_keys_of_a_secret() -> None:
    override = yaml.safe_load((PROJECT / "deploy" / "compose.keys.yml").read_text())
    service = override["services"]["titok"]
    [secret] = service["secrets"]
    assert override["secrets"] == {secret: {"file": "./keys.toml"}}
    assert service["environment"] == {"TITOK_API_KEYS_FILE": f"/run/secrets/{secret}"}  # where Compose mounts it


def test_the_stop_timeout_is_longer_than_the_drain() -> None:
    settings = Settings()
    drain = settings.shutdown_delay + settings.drain_seconds
    assert int(SERVICES["titok"]["stop_grace_period"].removesuffix("s")) > drain + 15


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the built wheel in an environment of its own; the packages it needs are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    uv = Path(sys.executable).with_name("uv")
    python = folder / "venv" / "bin" / "python"
    for command in (
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, PROJECT],
        [sys.executable, "-m", "venv", "--without-pip", folder / "venv"],
    ):
        subprocess.run(command, check=True, timeout=120)
    [wheel] = folder.glob("*.whl")
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True, timeout=120)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    # A folder named in a .pth file comes last, and .pth files in it (an editable install) are not followed.
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    imported = subprocess.run(
        [python, "-I", "-c", "import service; print(service.__file__)"], check=True, capture_output=True, text=True
    )
    assert Path(imported.stdout.strip()).is_relative_to(packages)
    return python.with_name("titok")


@pytest.fixture
def composed(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The service with the command and the environment of the compose file, on ports and addresses of a test."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    service = SERVICES["titok"]
    assert service["command"] == ["serve"]
    given = {name.removeprefix("TITOK_").lower(): value for name, value in service["environment"].items()}
    server = start_server(installed, **(given | {"host": "127.0.0.1", "redis_url": "redis://127.0.0.1:1/0"}))
    yield server
    end(server)


@pytest.mark.slow
def test_the_wheel_serves_as_composed_and_its_health_check_passes(composed: Server, installed: Path) -> None:
    program, *arguments = SERVICES["titok"]["healthcheck"]["test"][1:]
    assert program == "titok"
    host = SERVICES["titok"]["environment"]["TITOK_ADMIN_HOST"]
    port = composed.admin_url.rpartition(":")[2]
    environment = os.environ | {"TITOK_ADMIN_HOST": host, "TITOK_ADMIN_PORT": port}
    composed.wait_until_ready()
    subprocess.run([installed.with_name(program), *arguments], check=True, timeout=60, env=environment)
    answer = httpx.post(
        f"{composed.url}/v1/encode",
        content=(PROJECT / "docs" / "images" / "photograph.jpg").read_bytes(),
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
