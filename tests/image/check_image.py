"""The image of the project under the restrictions of docker-compose.yml."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from models.checkpoints.bundled import BUNDLED_WEIGHTS
from tests.image.engine import PHOTOGRAPH, PROJECT, Engine, Service

COMPOSED: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]["titok"]
RESTRICTED = (
    *("--read-only", "--read-only-tmpfs=false", "--init"),
    *(f"--cap-drop={capability}" for capability in COMPOSED["cap_drop"]),
    *(f"--security-opt={option.removesuffix(':true')}" for option in COMPOSED["security_opt"]),
    *(f"--tmpfs={folder}" for folder in COMPOSED["tmpfs"]),
    f"--user={COMPOSED['user']}",
    f"--memory={COMPOSED['mem_limit']}",
)
SEND_SECONDS = 3.0


@pytest.fixture(scope="module")
def service(engine: Engine, image: str) -> Iterator[Service]:
    with engine.service(image, *RESTRICTED) as started:
        started.wait_until_ready()
        yield started


def test_it_encodes_decodes_and_generates(service: Service) -> None:
    code = service.encode()
    picture = httpx.get(f"{service.url}/v1/images/titok-mini-32/{code}.png", timeout=60)
    assert picture.content.startswith(b"\x89PNG")
    decoded = httpx.post(f"{service.url}/v1/decode", json={"code": code}, headers={"Accept": "image/jpeg"}, timeout=60)
    assert decoded.content.startswith(b"\xff\xd8")
    generated = httpx.post(f"{service.url}/v1/generate", json={"class": 0, "seed": 1}, timeout=60)
    assert generated.status_code == 200


def test_health_and_metrics_are_on_the_admin_port_inside_the_container(service: Service, engine: Engine) -> None:
    assert httpx.get(f"{service.url}/readyz", timeout=30).json()["status"] == "ready"
    assert engine.podman("healthcheck", "run", service.name) in ("", "healthy")
    asked = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8001/metrics').read().decode())"
    assert 'titok_worker_up{device="cpu"} 1.0' in service.run("python", "-c", asked).stdout
    assert httpx.get(f"{service.url}/metrics", timeout=30).status_code == 404


def test_it_runs_without_rights_and_can_write_nothing_but_tmp(service: Service) -> None:
    status = service.run("cat", "/proc/self/status").stdout
    assert "\nUid:\t10001\t" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    assert service.run("touch", "/opt/titok/here").returncode != 0
    assert service.run("touch", f"{COMPOSED['tmpfs'][0]}/here").returncode == 0


def test_it_holds_nothing_that_it_does_not_need(service: Service) -> None:
    assert service.run("python", "-m", "pip", "--version").returncode != 0
    unneeded = "( -name tests -o -name test -o -name pip -o -name *.whl -o -path */torch/include )"
    assert service.run("find", "/opt/titok", *unneeded.split()).stdout == ""
    assert service.run("sh", "-c", "ls -A /root/.cache /src 2>/dev/null").stdout == ""


def test_a_stop_under_load_loses_no_request(engine: Engine, image: str) -> None:
    answers: list[int] = []
    lost: list[str] = []

    def send(url: str) -> None:
        with httpx.Client(timeout=60) as client:
            while True:
                try:
                    answer = client.post(f"{url}/v1/encode", content=PHOTOGRAPH, headers={"Content-Type": "image/jpeg"})
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    return  # no connection: nothing was sent
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                answers.append(answer.status_code)

    with engine.service(image, *RESTRICTED, "--env=TITOK_CACHE=off") as started:
        started.wait_until_ready()
        clients = [threading.Thread(target=send, args=(started.url,)) for _ in range(8)]
        for client in clients:
            client.start()
        time.sleep(SEND_SECONDS)
        engine.podman("stop", "--time", COMPOSED["stop_grace_period"].removesuffix("s"), started.name)
        for client in clients:
            client.join()
        assert engine.podman("inspect", "--format", "{{.State.ExitCode}}", started.name) == "0", started.log()
    assert lost == []
    assert set(answers) == {200}
    assert len(answers) > len(clients)


@pytest.mark.parametrize(
    "options",
    [
        ("--memory=700m", "--memory-swap=700m", "--cpus=0.5"),
        ("--shm-size=64k",),
        ("--user=23456:23456",),
    ],
    ids=["700 MiB and half a core", "64 KiB of shared memory", "an unknown user"],
)
def test_it_serves_with_little(engine: Engine, image: str, options: tuple[str, ...]) -> None:
    with engine.service(image, *RESTRICTED, *options) as started:
        started.wait_until_ready()
        started.encode()
        health = httpx.get(f"{started.url}/healthz", timeout=60).json()
        assert health["status"] == "ready"
        assert engine.podman("inspect", "--format", "{{.State.OOMKilled}}", started.name) == "false"
        assert "restarting in" not in started.log()


def test_weights_are_pulled_and_served_from_a_volume(engine: Engine, image: str) -> None:
    """By a foreign user of group 0 and without a network, so that the weights are in the volume already."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = engine.folder / "hub" / "models--someone--titok"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(BUNDLED_WEIGHTS / "titok-mini-32", repository / "snapshots" / commit)
    volume, user = "pulled-weights:/weights", "--user=23456:0"
    copy = ("--entrypoint=cp", "--volume", f"{repository.parent}:/hub:ro", image, "-r", "/hub", "/weights/hub")
    engine.podman("run", "--rm", "--volume", volume, user, *copy)
    settings = (
        "--env=TITOK_TOKENIZER=theirs",
        "--env=TITOK_TOKENIZER_WEIGHTS=someone/titok",
        "--env=TITOK_GENERATOR=off",
        "--env=HF_HUB_OFFLINE=1",
    )
    pulled = engine.podman("run", "--rm", *RESTRICTED, user, "--volume", volume, *settings, image, "pull")
    assert pulled.startswith(f"tokenizer theirs: someone/titok@{commit}, weights ")
    with engine.service(image, *RESTRICTED, "--volume", f"{volume}:ro", *settings) as started:
        started.wait_until_ready()
        [model] = httpx.get(f"{started.url}/v1/models", timeout=60).json()["data"]
        assert model["revision"].startswith(pulled.rpartition(" ")[2])
