"""Runs in processes that start quickly: a fork server has imported everything."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from service.bulk.image_formats import ImageOptions
from tests.service.bulk.data_sets import detokenize_job, job, run, sample_job

__all__ = ["start"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(command: str, source: Path, destination: Path, format_name: str) -> ForkServerProcess:
    """Starts a process that works in shards of two images. ``command``: tokenize, detokenize or sample."""
    process = _CONTEXT.Process(target=_run, args=(command, source, destination, format_name), daemon=True)
    process.start()
    return process


def _run(command: str, source: Path, destination: Path, format_name: str) -> None:
    torch.set_num_threads(1)
    match command:
        case "tokenize":
            run(job(source, destination, format=format_name, shard_images=2))
        case "detokenize":
            run(detokenize_job(source, destination, format=format_name, shard_images=2))
        case "sample":
            run(sample_job(destination, format="npy", images=ImageOptions(format_name), shard_images=2))
