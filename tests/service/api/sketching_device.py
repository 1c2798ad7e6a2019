"""A fake device that draws in steps, and a client for the events of generate requests."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from httpx_sse import EventSource
from PIL import Image

from models.codes.code_format import CodeFormat
from models.codes.latents import LatentFormat
from models.sampling.settings import SamplingSettings
from service.engine.protocol import RowState, Stepped
from service.inference.model_info import GeneratorInfo, ModelInfo
from tests.service.application import until
from tests.service.asgi_client import AsgiClient

NUM_TOKENS, MASK = 4, 256
EVENTS = {"Accept": "text/event-stream"}


class SketchingDevice:
    """Knows one token more at each step, seed + step of its position, and guesses 200 for the others.

    A picture is as bright as its first token. Each step waits until it is let through by ``steps``, and pictures while
    ``draws`` is clear; ``release`` ends all waiting. A seed, or a first token, in ``poison`` makes the call fail.
    """

    def __init__(self) -> None:
        self.release = threading.Event()
        self.steps = threading.Semaphore(0)
        self.draws = threading.Event()
        self.draws.set()
        self.poison: set[int] = set()
        self.decoded: list[list[int]] = []
        self.info = ModelInfo(
            name="sketch",
            revision="1",
            image_size=8,
            codes=CodeFormat(NUM_TOKENS, MASK),
            latent_format=LatentFormat(NUM_TOKENS, 2, is_posterior=False),
            device="cpu",
            precision={"encoder": "float32", "decoder": "float32", "generator": "float32"},
            source="test",
            generator=GeneratorInfo(
                revision="1",
                class_names=("crane",),
                presets={"demo": SamplingSettings(steps=NUM_TOKENS, guidance_scale=0.0)},
            ),
            batch_limits={},
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        while not self.release.is_set() and not self.draws.wait(timeout=0.01):
            pass
        self.decoded.append(tokens[:, 0].tolist())
        self._refuse(tokens[:, 0])
        return np.broadcast_to(tokens[:, :1, None, None], (len(tokens), 8, 8, 3)).astype(np.uint8)

    def step(self, rows: Sequence[RowState]) -> Stepped:
        while not self.release.is_set() and not self.steps.acquire(timeout=0.01):
            pass
        self._refuse([row.seed for row in rows])
        tokens = np.full((len(rows), NUM_TOKENS), MASK)
        for position, row in enumerate(rows):
            # Of a long schedule, the last steps are those at which something becomes known.
            known = max(0, row.step + 1 + NUM_TOKENS - row.settings.steps)
            tokens[position, NUM_TOKENS - known :] = row.seed + np.arange(known)
        finished = np.array([row.step + 1 >= row.settings.steps for row in rows])
        return Stepped(tokens=tokens, sampled=np.where(tokens == MASK, 200, tokens), finished=finished)

    def _refuse(self, values: Any) -> None:
        if self.poison & set(values):
            raise RuntimeError("poison")


async def generate(client: httpx.AsyncClient, headers: dict[str, str] = EVENTS, **body: Any) -> httpx.Response:
    return await client.post("/v1/generate", json={"class": "crane", "seed": 1, **body}, headers=headers)


def events_of(answer: httpx.Response) -> list[tuple[str, Any]]:
    return [(event.event, event.json()) for event in EventSource(answer).iter_sse()]


def reader(**body: Any) -> AsgiClient:
    content = json.dumps({"class": "crane", "seed": 1, **body}).encode()
    headers = {**EVENTS, "Content-Type": "application/json", "Content-Length": str(len(content)), "X-Request-ID": "1"}
    return AsgiClient(path="/v1/generate", headers=headers, body=content)


def brightness(image: str) -> int:
    opened = Image.open(io.BytesIO(base64.b64decode(image)))
    assert opened.format == "JPEG"
    return int(np.asarray(opened)[0, 0, 0])


async def drawing(client: httpx.AsyncClient, held: SketchingDevice, *, images: int) -> None:
    """Lets a step through, and the one after it, which the device may be at when the previews of the first are wanted."""
    held.steps.release()
    await until(client, lambda health: health["lanes"]["decode"]["queued_images"] == images or held.decoded)
    held.steps.release()
    await until(client, lambda health: held.decoded and not any(health["lanes"]["decode"].values()))


def check_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
