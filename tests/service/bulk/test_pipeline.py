"""Both ways through a data set, that of a CPU and that of a device of its own, here with one network on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from models.tokenizer import Tokenizer
from service.bulk.entries import Entry, Position
from service.bulk.on_cores import tokenize_on_cores
from service.bulk.on_device import tokenize_on_device
from service.bulk.pipeline import tokenize_entries
from service.bulk.shards import Shard
from service.bulk.views import Views
from service.bulk.work import Work
from tests.service.bulk.data_sets import COUNT, broken_images, folder_of, images, job
from tests.tiny_models import tiny_tokenizer

Way = Callable[..., Generator[Shard]]
WAYS = pytest.mark.parametrize("way", [tokenize_on_cores, tokenize_on_device], ids=["cores", "device"])
WORK = Work(views=Views(), shard_images=5, batch_size=2, threads=2, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def entries(files: list[bytes]) -> Iterator[tuple[Position, Entry]]:
    for number, data in enumerate(files):
        yield Position(0, number + 1), Entry(f"{number:04d}", None, partial(bytes, data))


@pytest.mark.parametrize("views", [Views(), Views(flip=True), Views("ten")], ids=["centre", "flip", "ten"])
def test_both_ways_make_the_same_shards(views: Views, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = job(folder_of(tmp_path, broken_images()), tmp_path / "tokens").source
    work = Work(views=views, shard_images=5, batch_size=20, threads=3, max_pixels=1_000_000)
    seen: list[tuple[int, int]] = []

    def count(done: int, broken: int) -> None:
        seen.append((done, broken))

    made = []
    for way in (tokenize_on_cores, tokenize_on_device):
        seen.clear()
        shards = list(way(source.entries(Position(0, 0)), tokenizer, work, first_shard=7, progress=count))
        assert [shard.number for shard in shards] == [7, 8, 9, 10, 11]
        assert tuple(map(sum, zip(*seen, strict=True))) == (COUNT, 2)
        assert [len(shard.broken) for shard in shards] == [1, 0, 1, 0, 0]
        made.append([(shard.end, shard.broken, [(row.key, row.label) for row in shard.rows]) for shard in shards])
        tokens = torch.stack([torch.from_numpy(row.tokens) for shard in shards for row in shard.rows])
        assert tokens.shape == (COUNT - 2, views.count, tokenizer.num_tokens)
        made.append(tokens.tolist())
    assert made[:2] == made[2:]


def test_a_cpu_computes_on_as_many_cores_as_there_are_threads(tokenizer: Tokenizer) -> None:
    at_work, both = set[str](), threading.Barrier(2, timeout=20)

    def together(data: bytes) -> bytes:
        if len(at_work) < 2:
            at_work.add(threading.current_thread().name)
            both.wait()
        return data

    given = (
        (position, Entry(entry.key, None, partial(together, entry.read()))) for position, entry in entries(images())
    )
    before = torch.get_num_threads()
    assert sum(len(shard.rows) for shard in tokenize_entries(given, tokenizer, WORK)) == COUNT
    assert len(at_work) == 2
    assert torch.get_num_threads() == before


@WAYS
def test_little_is_read_ahead_of_what_is_asked_for(way: Way, tokenizer: Tokenizer) -> None:
    read = 0

    def endless() -> Iterator[tuple[Position, Entry]]:
        nonlocal read
        data = images(1)[0]
        while True:
            read += 1
            yield Position(0, read), Entry(str(read), None, partial(bytes, data))

    shards = way(endless(), tokenizer, WORK)
    next(shards)
    shards.close()
    assert read < 40
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "decode", "tokenize"))
    ]


@WAYS
def test_what_a_source_raises_ends_the_run(way: Way, tokenizer: Tokenizer) -> None:
    def failing() -> Iterator[tuple[Position, Entry]]:
        yield from entries(images(15))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(way(failing(), tokenizer, WORK))
    with pytest.raises(RuntimeError, match="no such file"):
        list(way(iter([(Position(0, 1), Entry("a", None, _fail))]), tokenizer, WORK))


@WAYS
def test_no_entries_make_no_shard_and_broken_ones_an_empty_one(way: Way, tokenizer: Tokenizer) -> None:
    assert list(way(iter([]), tokenizer, WORK)) == []
    (shard,) = way(entries([b"", b"broken", b"\xff\xd8\xff"]), tokenizer, WORK)
    assert (shard.rows, [broken.key for broken in shard.broken]) == ([], ["0000", "0001", "0002"])


def _fail() -> bytes:
    raise RuntimeError("no such file")
