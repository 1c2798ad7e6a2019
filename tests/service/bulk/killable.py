"""Runs in processes that start quickly: a fork server has imported everything."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from tests.service.bulk.data_sets import job, run

__all__ = ["start"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(source: Path, destination: Path, format_name: str) -> ForkServerProcess:
    """Starts a process that tokenizes in shards of two images."""
    process = _CONTEXT.Process(target=_tokenize, args=(source, destination, format_name), daemon=True)
    process.start()
    return process


def _tokenize(source: Path, destination: Path, format_name: str) -> None:
    torch.set_num_threads(1)
    run(job(source, destination, format=format_name, shard_images=2))
