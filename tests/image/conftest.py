"""The image of the project, built once on a base from Debian's packages: no registry is asked, and pip has no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from tests.image.engine import PROJECT, Engine
from tests.programs import require_program

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Python for the service; the others stand for the images that docker-compose.yml names.
PACKAGES = ("ca-certificates", "prometheus", "python3", "python3-pip", "python3-venv", "redis-server", "wget")
# What the tests ask of a container.
ASKED = ("--publish=127.0.0.1::8000", "--memory=100m", "--memory-swap=100m", "--cpus=0.5", "--cap-drop=all", "--init")
PYTHON = """FROM debian
RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""
# As in the published image, Redis answers other hosts although no password is set.
REDIS = """FROM debian
ENTRYPOINT ["sh", "-c", "exec \\"$@\\" --protected-mode no", "sh"]
"""
PROMETHEUS = """FROM debian
RUN install -d -o 65534 -g 65534 /prometheus
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Skips where a program is missing, or where containers cannot be run."""
    require_program("buildah")
    require_program("podman")
    require_program("podman-compose")
    require_program("runc")
    require_program("mmdebstrap")
    require_program("catatonit")
    require_program("netavark")
    require_program("aardvark-dns")
    require_program("iptables")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True).returncode:
        pytest.skip("needs root on a machine that can run containers")
    engine = Engine(tmp_path_factory.mktemp("image"))
    yield engine
    engine.remove()
    shutil.rmtree(engine.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def base(engine: Engine) -> Path:
    """The images that others are built from."""
    folder = engine.folder / "base"
    folder.mkdir()
    excluded = " ".join(f"--dpkgopt=path-exclude={path}" for path in ("/usr/share/doc/*", "/usr/bin/promtool"))
    system = f"mmdebstrap --variant=minbase {excluded} --include={','.join(PACKAGES)} bookworm"
    made = engine.call("bash", "-c", f"set -o pipefail; {system} | podman import - localhost/debian", check=False)
    _need("packages from a mirror of Debian", made)
    for name, text in (
        ("python:3-debian", PYTHON),
        ("redis:7-alpine", REDIS),
        ("prom/prometheus:v2.53.4", PROMETHEUS),
    ):
        file = folder / "Dockerfile"
        file.write_text(text)
        built = engine.build(f"localhost/{name}", "--file", file, folder, check=False)
        _need("a machine that can build images", built)
    tried = engine.call("podman", "run", "--rm", *ASKED, "localhost/debian", "true", check=False)
    _need("containers with a network and limits", tried)
    return folder


def _need(what: str, ended: subprocess.CompletedProcess[str]) -> None:
    """Skips if a command failed."""
    if ended.returncode:
        pytest.skip(f"needs {what}: {' '.join(ended.stderr.split())[-500:]}")


@pytest.fixture(scope="session")
def wheels(engine: Engine, base: Path) -> Path:
    """Everything that pip installs, for the Python of the base."""
    asked = "import platform; print(platform.python_version())"
    version = engine.podman("run", "--rm", "localhost/python:3-debian", "python", "-c", asked)
    short = version.rpartition(".")[0]
    locked = map(Requirement, (PROJECT / "requirements" / "image.lock").read_text().splitlines())
    wanted = [
        str(requirement).partition(";")[0]
        for requirement in locked
        if not requirement.marker
        or requirement.marker.evaluate({"python_version": short, "python_full_version": version})
    ]
    folder = engine.folder / "wheels"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder)
    only = ("--only-binary", ":all:", "--python-version", short)
    for packages in ((*_torch_index(), "--no-deps", *wanted), ("hatchling>=1.27",)):
        _need("packages from an index", engine.call(*pip, *only, *packages, check=False))
    if not list(folder.glob("torch-*+cpu-*.whl")):
        pytest.skip("needs a build of torch for the CPU")
    return folder


def _torch_index() -> tuple[str, ...]:
    """PyTorch's index of builds for the CPU, where it can be reached: pip would wait minutes for it."""
    try:
        httpx.head(f"{TORCH_INDEX}/torch/", timeout=5).raise_for_status()
    except httpx.HTTPError:
        return ()
    return ("--extra-index-url", TORCH_INDEX)


@pytest.fixture(scope="session")
def image(engine: Engine, base: Path, wheels: Path) -> str:
    """The name of the built image."""
    name = "localhost/titok:test"
    arguments = ("--build-arg", "PYTHON=3-debian", "--build-arg", "PIP_NO_INDEX=1")
    engine.build(name, "--build-context", f"wheels={wheels}", *arguments, PROJECT)
    return name
