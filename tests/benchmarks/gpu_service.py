"""Throughput through HTTP: a server process, and clients that send forms of many JPEG files, to keep the clients' cost low.

Part of ``make gpu-check``, where the tools of the larger service benchmarks may not be installed.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from models.checkpoints.bundled import DEFAULT_VARIANT
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import GOLDEN, MANIFESTS, synthetic_weights

__all__ = ["http_throughput", "missing_packages"]

ROOT = Path(__file__).parents[2]
START = "from service.cli.main import main; main()"
START_SECONDS = 120.0
CONNECTIONS = 16
FILES = 32  # of a form


def missing_packages() -> list[str]:
    """Which of the project's dependencies this Python does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]]  # type: ignore[index]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def http_throughput(name: str, device: str, folder: Path, *, seconds: float, size: int = 256) -> float:
    """Images a second of ``POST /v1/encode``, from pre-sized JPEGs to ids, with the cache off. ``folder`` is for weights.

    Raises ``RuntimeError`` if the server does not start, or answers with anything but ids.
    """
    settings = {"TOKENIZER": name, "DEVICES": device, "CACHE": "off", "LOG_LEVEL": "warning", "REQUEST_TIMEOUT": "600"}
    if name != DEFAULT_VARIANT:
        _write_checkpoint(name, folder)
        settings |= {"TOKENIZER_WEIGHTS": str(folder), "GENERATOR": "off"}
    body, content_type = _form(128 if name == DEFAULT_VARIANT else size)
    import httpx

    try:
        with _server(settings) as address:
            return _rate(f"{address}/v1/encode", body, content_type, seconds)
    except httpx.HTTPError as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _write_checkpoint(name: str, folder: Path) -> None:
    from safetensors.torch import save_file

    manifest = json.loads((GOLDEN / "manifests" / f"{MANIFESTS[name]}.json").read_text())
    save_file(synthetic_weights(MANIFESTS[name]), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(manifest["config"]))


def _form(size: int) -> tuple[bytes, str]:
    from PIL import Image

    parts = []
    for index, pixels in enumerate(distinct_images(FILES, size)):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG", quality=90)
        head = f'Content-Disposition: form-data; name="image"; filename="{index}.jpg"\r\nContent-Type: image/jpeg'
        parts.append(f"--titok\r\n{head}\r\n\r\n".encode() + buffer.getvalue() + b"\r\n")
    return b"".join(parts) + b"--titok--\r\n", "multipart/form-data; boundary=titok"


@contextmanager
def _server(settings: dict[str, str]) -> Iterator[str]:
    """The address of a server that is ready."""
    import httpx

    environment = {key: value for key, value in os.environ.items() if not key.startswith("TITOK_")}
    environment |= {f"TITOK_{key}": value for key, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", "--port", "0", "--admin-port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    log: list[str] = []
    try:
        address = None
        for line in process.stdout:
            log.append(line)
            if match := re.search(r"TiTok is at (\S+)", line):
                address = match[1]
                break
        # The pipe is read on, or the server would block on its own log one day.
        threading.Thread(target=lambda: log.extend(process.stdout or ()), daemon=True).start()
        until = time.monotonic() + START_SECONDS
        while address is None or httpx.get(f"{address}/readyz", timeout=START_SECONDS).status_code != httpx.codes.OK:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not become ready: {''.join(log[-20:])}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _rate(url: str, body: bytes, content_type: str, seconds: float) -> float:
    import httpx

    begun = time.perf_counter() + min(3.0, seconds / 3)  # what is answered before warms up
    until = begun + seconds

    def post() -> int:
        images = 0
        with httpx.Client(timeout=600.0) as client:
            while time.perf_counter() < until:
                answer = client.post(url, content=body, headers={"Content-Type": content_type})
                if answer.status_code != httpx.codes.OK:
                    raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
                if begun <= time.perf_counter() < until:
                    images += len(answer.json()["data"])
        return images

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(future.result() for future in [pool.submit(post) for _ in range(CONNECTIONS)]) / seconds
