"""A real Prometheus beside a real service: what the rules and the dashboards ask for is there."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import end, start_server
from tests.programs import require_program

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
RUNBOOK = (DEPLOY.parent / "docs" / "operations.md").read_text()
PHOTOGRAPH = DEPLOY.parent / "docs" / "images" / "photograph.jpg"
# Only workers on a GPU tell of these.
OF_GPUS = ("titok_gpu_",)
START_SECONDS = 90
SCRAPE_SECONDS = 1


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


_SERIES = re.compile(r"\b(?:up|process_\w+|(?:[a-z_]+:)?titok[_:][\w:]+)")
_PICKERS = re.compile(r"\$(?:namespace|instance)\b")


def queries() -> dict[str, str]:
    """Every query, by where it stands."""
    found = {rule["record"]: rule["expr"] for rule in rules("recording.yml")}
    # The conditions of alerts are met by nothing while all is well, so their series are asked for.
    found |= {
        f"{rule['alert']}: {name}": name for rule in rules("alerts.yml") for name in _SERIES.findall(rule["expr"])
    }
    for path in sorted((DEPLOY / "grafana" / "json").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                found[name] = _PICKERS.sub(".*", target["expr"].replace("$__rate_interval", "1m"))
    scaler = yaml.safe_load((DEPLOY / "kubernetes" / "components" / "keda" / "scaledobject.yaml").read_text())
    for trigger in scaler["spec"]["triggers"]:
        # Without a cluster, nobody labels what is scraped with a namespace.
        found[f"autoscaler: {trigger['name']}"] = trigger["metadata"]["query"].replace(
            'namespace="titok"', 'namespace=""'
        )
    return found


QUERIES = queries()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Scrapes a service that has answered a few requests of every lane."""
    program = require_program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    for name in ("recording.yml", "alerts.yml"):
        shutil.copy(RULES / name, folder)
    server = start_server(max_batch_size="4")
    server.wait_until_ready()
    configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
    configuration["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{SCRAPE_SECONDS}s")
    [service, _] = configuration["scrape_configs"]
    service["static_configs"] = [{"targets": [server.admin_url.removeprefix("http://")]}]
    configuration["scrape_configs"] = [service]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            deadline = time.monotonic() + START_SECONDS
            while not _has_counted(client, server.url):
                time.sleep(SCRAPE_SECONDS)
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)
        end(server)


def _has_counted(client: httpx.Client, url: str) -> bool:
    """Sends a request of each kind, and says whether every rule has recorded something since."""
    photograph = PHOTOGRAPH.read_bytes()
    with httpx.Client(base_url=url, timeout=60) as service:
        code = service.post("/v1/encode", content=photograph, headers={"Content-Type": "image/jpeg"})
        tokens = code.raise_for_status().json()["data"][0]["tokens"]
        service.post("/v1/decode", json={"tokens": [tokens]}).raise_for_status()
        service.post("/v1/generate", json={"class": 0, "n": 1, "steps": 2}).raise_for_status()
    try:
        return bool(ask(client, 'rate(titok_batch_images_count{op="generate"}[1m]) > 0')) and all(
            ask(client, rule["record"]) for rule in rules("recording.yml")
        )
    except httpx.ConnectError:
        return False


def ask(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_returns_data(prometheus: httpx.Client, name: str) -> None:
    query = QUERIES[name]
    if any(metric in query for metric in OF_GPUS):
        pytest.skip(f"{name} asks for what only a worker on a GPU tells")
    assert ask(prometheus, query), query


@pytest.mark.parametrize(
    "arguments", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]], ids=" ".join
)
def test_promtool_accepts_configuration_and_rules(arguments: list[str]) -> None:
    ended = subprocess.run(
        [require_program("promtool"), *arguments], cwd=RULES, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_section_in_the_runbook_and_a_test_of_each_kind(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert re.fullmatch(rf"https://[^#]+#{name.lower()}", rule["annotations"]["runbook_url"])
    assert f"\n## {name}\n" in RUNBOOK
    tests = {test["name"] for test in yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]}
    assert {f"{name} fires", f"{name} is silent"} <= tests
