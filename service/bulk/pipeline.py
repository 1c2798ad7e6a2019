"""Entries of a source in, shards of tokens out, in the way that suits the device."""

from __future__ import annotations

from collections.abc import Generator

from models.tokenizer import Tokenizer
from service.bulk.on_cores import tokenize_on_cores
from service.bulk.on_device import tokenize_on_device
from service.bulk.shards import Shard
from service.bulk.work import Entries, Progress, Work

__all__ = ["tokenize_entries"]


def tokenize_entries(
    entries: Entries, tokenizer: Tokenizer, work: Work, *, first_shard: int = 0, progress: Progress | None = None
) -> Generator[Shard]:
    """The shards that entries make, numbered from ``first_shard``; none if there are no entries.

    Raises what the source raises, and nothing for a broken image: that is in its shard's ``broken``.
    """
    way = tokenize_on_cores if tokenizer.device.type == "cpu" else tokenize_on_device
    return way(entries, tokenizer, work, first_shard=first_shard, progress=progress)
