"""The rendered Deployment of the CPU overlay, with weights on a volume, run by ``podman kube play``."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.image.engine import PHOTOGRAPH, PROJECT, Engine, Service
from tests.programs import require_program

PLAYED = ("ConfigMap", "Deployment", "PersistentVolumeClaim")
KEY = "s3cret"
OWN = {"resources": ["../cpu"], "components": ["../../components/weights-volume"]}


def manifests(folder: Path) -> list[dict[str, Any]]:
    """An overlay of one's own, rendered."""
    shutil.copytree(PROJECT / "deploy" / "kubernetes", folder / "kubernetes")
    own = folder / "kubernetes" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(yaml.safe_dump(OWN))
    command = [require_program("kubectl"), "kustomize", own]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [manifest for manifest in yaml.safe_load_all(rendered) if manifest["kind"] in PLAYED]


@pytest.fixture(scope="module")
def pod(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("kubernetes")
    played = manifests(folder)
    [deployment] = (manifest for manifest in played if manifest["kind"] == "Deployment")
    # podman removes an init container when it has ended, and fails if it notices its end too late.
    deployment["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    engine.podman("tag", image, deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    secret = folder / "secret.json"  # podman reads the data of a Secret from one of its own secrets
    secret.write_text(json.dumps({"api-keys": base64.b64encode(KEY.encode()).decode()}))
    engine.podman("secret", "create", "titok", secret)
    file = folder / "played.yaml"
    file.write_text(yaml.safe_dump_all(played))
    engine.podman("kube", "play", file)
    try:
        names = engine.podman("ps", "--all", "--format", "{{.Names}}").split()
        [name] = (name for name in names if name.endswith("-titok"))
        [infra] = (name for name in names if name.endswith("-infra"))
        address = engine.podman(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", infra
        )
        yield Service(engine, name, f"http://{address}:8000")
    finally:
        engine.podman("kube", "down", file, check=False)
        engine.podman("secret", "rm", "titok", check=False)


def test_the_pod_gets_ready_and_asks_for_a_key(pod: Service) -> None:
    pod.wait_until_ready()
    admin = httpx.URL(pod.url).copy_with(port=8001)
    # As the probes, from outside the pod.
    assert httpx.get(f"{admin}/readyz", timeout=30).status_code == 200
    send = {"content": PHOTOGRAPH, "timeout": 60}
    headers = {"Content-Type": "image/jpeg"}
    assert httpx.post(f"{pod.url}/v1/encode", headers=headers, **send).status_code == 401
    assert httpx.post(f"{pod.url}/v1/encode", headers={**headers, "X-API-Key": KEY}, **send).status_code == 200


def test_the_container_is_as_restricted_as_the_manifest_says(pod: Service) -> None:
    status = pod.run("cat", "/proc/self/status").stdout
    assert "\nUid:\t10001\t" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    assert pod.run("touch", "/opt/titok/here").returncode != 0
    assert pod.run("touch", "/weights/here").returncode != 0
    assert pod.run("touch", f"{tempfile.gettempdir()}/here").returncode == 0
