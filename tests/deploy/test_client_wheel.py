"""The distribution ``titok-client``, installed into an empty environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.client.version import VERSION as CLIENT_VERSION
from service.version import VERSION
from tests.service.client.faulty_server import faulty_server
from tests.service.client.test_faults import ONE

PROJECT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
MEGABYTE = 1_000_000

USER_SCRIPT = """
import asyncio
import sys
from pathlib import Path

from titok_client import AsyncTiTokClient, ConnectionFailed, Encoded, Generated, Model, Picture, RetryPolicy, TiTokClient


def main(url: str) -> None:
    with TiTokClient(url, retry=RetryPolicy(tries=1)) as titok:
        encoded: Encoded = titok.encode(b"image")
        print(list(encoded.tokens), encoded.code)


def every_call(titok: TiTokClient, folder: Path) -> list[Picture]:
    one = titok.encode("a.jpg")
    many = titok.encode(sorted(folder.glob("*.jpg")), lookup_first=True)
    strings = titok.encode(["a.jpg", "b.jpg"])
    known = titok.lookup([folder / "a.jpg"])
    generated: list[Generated] = titok.generate("cat", n=2, seed=1)
    for event in titok.generate_stream("cat"):
        print(event.tokens)
    models: list[Model] = titok.models()
    print([each.code for each in (*many, *strings)], [each and each.code for each in known.values()], models[0].limits)
    print(titok.reconstruct(b"image").psnr, titok.mix([one, generated[0]]).picture, titok.classes("c")[0].names)
    return [titok.decode(one), *titok.decode([one.code, one.code], format="webp")]


async def asynchronous(url: str) -> None:
    async with AsyncTiTokClient(url) as titok:
        one = await titok.encode(b"image")
        many = await titok.encode([b"image", b"image"])
        print(one.code, [each.tokens for each in many], (await titok.decode(one)).data)


try:
    main(sys.argv[1])
except ConnectionFailed as error:
    sys.exit(f"no service: {error}")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing but the client's wheel and what it requires."""
    folder = tmp_path_factory.mktemp("client")
    python = folder / "venv" / "bin" / "python"
    for command in (
        [UV, "build", "--quiet", "--out-dir", folder, PROJECT / "service" / "client"],
        [UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"],
        [UV, "pip", "install", "--quiet", "--python", python, folder / f"titok_client-{VERSION}-py3-none-any.whl"],
    ):
        subprocess.run(command, check=True, timeout=240)
    return python


def run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(USER_SCRIPT)
    return path


def test_the_wheel_requires_httpx_alone_and_is_small(python: Path) -> None:
    listed = run(python, "-c", "import importlib.metadata as m; print(*m.requires('titok-client'), sep='\\n')")
    assert [line for line in listed.stdout.splitlines() if "extra ==" not in line] == ["httpx>=0.28"]
    [packages] = (python.parents[1] / "lib").glob("python*/site-packages")
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert size < 10 * MEGABYTE
    assert not {"torch", "numpy", "pydantic", "PIL", "service", "models"} & {path.name for path in packages.iterdir()}
    assert {path.name for path in (packages / "titok_client").iterdir()} >= {"__init__.py", "py.typed"}


def test_the_installed_client_calls_a_service(python: Path, script: Path) -> None:
    with faulty_server(ONE) as server:
        called = run(python, script, server.url)
        assert (called.stdout, called.stderr) == ("[0] A\n", "")
        [request] = server.received
        assert request.headers["user-agent"] == f"titok-client/{VERSION}"
    refused = run(python, script, server.url)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"no service: {server.url}: ")


def test_no_expression_of_a_user_script_has_the_type_any(python: Path, script: Path, tmp_path: Path) -> None:
    (configuration := tmp_path / "mypy.ini").write_text("[mypy]\n")
    options = ["--strict", "--disallow-any-expr", "--config-file", configuration, "--python-executable", python]
    command = [sys.executable, "-I", "-m", "mypy", *options, "--cache-dir", tmp_path / "cache", script]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


def test_both_distributions_have_the_same_version_and_are_typed(python: Path) -> None:
    shown = run(python, "-c", "import importlib.metadata as m; print(m.version('titok-client'))")
    assert shown.stdout.strip() == CLIENT_VERSION == VERSION
    for package in ("models", "service", "service/client"):
        assert (PROJECT / package / "py.typed").exists()
