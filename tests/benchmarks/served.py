"""Models, images and server processes of the service benchmarks."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file

from models import Tokenizer, load_tokenizer
from models.checkpoints.registry import DEFAULT_VARIANT
from models.preprocess import eval_crop
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits
from tests.benchmarks.load import Request
from tests.benchmarks.models import GOLDEN, MANIFESTS, images_of
from tests.e2e.conftest import START_SECONDS, Server, end, start_server
from tests.golden.weights import state_dict

__all__ = ["DEFAULT_VARIANT", "Endpoint", "Model", "jpegs", "model_named", "other_server", "pixels_of", "serve"]

DRAIN_SECONDS = 5.0
_LARGEST_BATCH = 32


@dataclass(frozen=True)
class Model:
    """A tokenizer by name, with weights other than the variant's own if given."""

    name: str
    weights: Path | None = None

    def load(self) -> Tokenizer:
        """The bare model, with the precision, the runtime and the calibration of the service."""
        tokenizer = load_tokenizer(self.name, weights=self.weights, dtype="auto")
        tokenizer.tune(_LARGEST_BATCH)
        return tokenizer

    @property
    def settings(self) -> dict[str, str]:
        """The service's settings for this model."""
        weights = {} if self.weights is None else {"tokenizer_weights": str(self.weights), "generator": "off"}
        return {"tokenizer": self.name, **weights}


@dataclass(frozen=True)
class Endpoint:
    """The encode endpoint of a server: URL, request format, and the ids in its response.

    ``process_group`` is set for servers that are stopped while another one is measured.
    """

    url: str
    content_type: str
    wrap: Callable[[bytes], bytes]
    tokens: Callable[[Any], list[int]]
    process_group: int | None = None

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Resumes the server's processes within the context and stops them afterwards: some poll all the time."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if self.process_group is not None:
            os.killpg(self.process_group, number)

    def request(self, jpeg: bytes) -> Request:
        """The request for one image."""
        return Request(self.url, self.wrap(jpeg), self.content_type)

    def encode(self, images: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Ids int64 [n, K] of images that are all sent at once."""

        async def post() -> list[list[int]]:
            async with httpx.AsyncClient(timeout=120) as client:
                headers = {"Content-Type": self.content_type}
                answers = await asyncio.gather(
                    *(client.post(self.url, content=self.wrap(image), headers=headers) for image in images)
                )
            return [self.tokens(answer.raise_for_status().json()) for answer in answers]

        return np.array(asyncio.run(post()))


def model_named(name: str, folder: Path) -> Model:
    """The bundled checkpoint, or a published shape with synthetic weights, written to ``folder`` as a checkpoint."""
    if name == DEFAULT_VARIANT:
        return Model(name)
    manifest = json.loads((GOLDEN / "manifests" / f"{MANIFESTS[name]}.json").read_text())
    save_file(
        {key: torch.from_numpy(value) for key, value in state_dict(manifest).items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(manifest["config"]))
    return Model(name, folder)


def jpegs(size: int, count: int) -> list[bytes]:
    """Crops of photographs that need no resizing, as JPEG files."""
    files = []
    for pixels in images_of(size, count):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def pixels_of(jpeg: bytes, size: int) -> npt.NDArray[np.uint8]:
    """The service's preprocessing of the file: uint8 [size, size, 3]."""
    return eval_crop(decode_image(jpeg, limits=MediaLimits(), pointer="body", declared="image/jpeg").image, size)


def _has_selected(health: Any) -> bool:
    """Whether all workers have selected the runtime of the encoder."""
    found = [child["runtimes"]["encoder"] for child in health["processes"] if "runtimes" in child]
    return bool(found) and "selecting" not in found


@contextmanager
def serve(model: Model, **settings: str) -> Iterator[tuple[Server, Endpoint]]:
    """``titok serve`` with the cache off and the faster runtime by default; ``settings`` are named without ``TITOK_``."""
    defaults = {"cache": "off", "runtime": "auto", "drain_seconds": str(DRAIN_SECONDS)}
    server = start_server(**{**defaults, **model.settings, **settings})
    try:
        server.wait_until_ready()
        server.until(_has_selected)
        yield (
            server,
            Endpoint(f"{server.url}/v1/encode", "image/jpeg", bytes, lambda answer: answer["data"][0]["tokens"]),
        )
    finally:
        server.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=2 * DRAIN_SECONDS)
        end(server)


@contextmanager
def other_server(kind: str, model: Model, **options: object) -> Iterator[Endpoint]:
    """Starts a server of ``tests.benchmarks.other_servers`` with its command-line options and waits until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {"model": model.name, "port": port, **({"weights": model.weights} if model.weights else {}), **options}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    # A process group of its own, so that all its processes can be stopped together.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.other_servers", kind, *flags],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(process, url)
        wrap, content_type = (_as_json, "application/json") if kind == "litserve" else (bytes, "image/jpeg")
        yield Endpoint(f"{url}/predict", content_type, wrap, lambda answer: answer["tokens"], process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _as_json(jpeg: bytes) -> bytes:
    return json.dumps({"image": base64.b64encode(jpeg).decode()}).encode()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=5) as client:
        while True:
            with suppress(httpx.TransportError):
                if client.get(f"{url}/health").status_code == httpx.codes.OK:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(map(str, process.args))} did not become ready")  # type: ignore[arg-type]
            time.sleep(0.1)
