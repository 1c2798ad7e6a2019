"""Baseline servers for the same model: LitServe and plain FastAPI.

``python -m tests.benchmarks.other_servers litserve --model titok-mini-32 --port 9000``.

``litserve`` batches in worker processes; ``plain`` is FastAPI without batching: files are decoded in threads, and the
model encodes one image at a time. Both answer ``{"tokens": [...]}`` at ``/predict``, and 200 at ``/health`` once the
model is loaded.
"""

from __future__ import annotations

import argparse
import base64
import os
import threading
from typing import Any

import litserve  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from models import Tokenizer
from tests.benchmarks.served import Model, pixels_of

Pixels = npt.NDArray[np.uint8]


class EncodeAPI(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not typed
    """Accepts images as base64 in JSON, which LitServe parses faster than forms."""

    def __init__(self, model: Model, *, threads: int, max_batch_size: int, batch_timeout: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout)
        self._model = model
        self._threads = threads

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe's name for it
        torch.set_num_threads(self._threads)
        self._tokenizer: Tokenizer = self._model.load()
        # Warm-up, so that the first request is not slower.
        self._tokenizer.encode(np.zeros((1, self._tokenizer.image_size, self._tokenizer.image_size, 3), np.uint8))

    def decode_request(self, request: dict[str, str]) -> Pixels:
        return pixels_of(base64.b64decode(request["image"]), self._tokenizer.image_size)

    def batch(self, inputs: list[Pixels]) -> Pixels:
        return np.stack(inputs)

    def predict(self, x: Pixels) -> npt.NDArray[np.int64]:
        # With max_batch_size 1, LitServe does not call batch() and unbatch().
        ids: npt.NDArray[np.int64] = self._tokenizer.encode(x if x.ndim == 4 else x[None]).numpy()
        return ids if x.ndim == 4 else ids[0]

    def unbatch(self, output: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        return list(output)

    def encode_response(self, output: npt.NDArray[np.int64]) -> dict[str, list[int]]:
        return {"tokens": output.tolist()}


def plain_app(model: Model) -> FastAPI:
    """FastAPI as in its tutorial, with a lock around the model: concurrent runs slow each other down."""
    tokenizer = model.load()
    lock = threading.Lock()
    app = FastAPI()

    def encode(jpeg: bytes) -> list[int]:
        pixels = pixels_of(jpeg, tokenizer.image_size)
        with lock:
            ids: list[int] = tokenizer.encode(pixels[None])[0].tolist()
        return ids

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[int]]:
        return {"tokens": await run_in_threadpool(encode, await request.body())}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    """Serves until killed."""
    parser = argparse.ArgumentParser(description="Serve the model with another server.")
    parser.add_argument("kind", choices=["litserve", "plain"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--batch-timeout", type=float, default=0.0)
    arguments = parser.parse_args()
    model = Model(arguments.model, arguments.weights)
    if arguments.kind == "plain":
        uvicorn.run(plain_app(model), port=arguments.port, log_level="error")
        return
    api = EncodeAPI(
        model,
        threads=max(1, len(os.sched_getaffinity(0)) // arguments.workers),
        max_batch_size=arguments.max_batch_size,
        batch_timeout=arguments.batch_timeout,
    )
    server: Any = litserve.LitServer(api, accelerator="cpu", workers_per_device=arguments.workers, timeout=False)
    server.run(host="127.0.0.1", port=arguments.port, num_api_servers=1, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
