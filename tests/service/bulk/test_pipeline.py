"""The pipelines for a CPU and for a GPU, both with one network on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from models.tokenizer import Tokenizer
from service.bulk.crops import Crops
from service.bulk.entries import Entry, Position, Source
from service.bulk.pipeline import Pipeline, cpu_pipeline, gpu_pipeline, make_shards
from service.bulk.shards import Row
from service.bulk.tokenization import Tokenization
from tests.service.bulk.data_sets import COUNT, broken_images, folder_of, images, job
from tests.tiny_models import tiny_tokenizer

BOTH = pytest.mark.parametrize("pipeline", [cpu_pipeline, gpu_pipeline], ids=["cpu", "gpu"])
JOB = job(Source("", "folder", (), ""), Path())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def entries(files: list[bytes]) -> Iterator[tuple[Position, Entry]]:
    for number, data in enumerate(files):
        yield Position(0, number + 1), Entry(f"{number:04d}", None, partial(bytes, data))


@pytest.mark.parametrize("crops", [Crops(), Crops(flip=True), Crops("ten")], ids=["centre", "flip", "ten"])
def test_both_pipelines_make_the_same_shards(crops: Crops, tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = job(folder_of(tmp_path, broken_images()), tmp_path / "tokens", crops=crops, batch_size=20, threads=3)
    seen: list[tuple[int, int]] = []

    def count(done: int, broken: int) -> None:
        seen.append((done, broken))

    made = []
    for pipeline in (cpu_pipeline, gpu_pipeline):
        seen.clear()
        shards = list(
            make_shards(
                asked.source.entries(Position(0, 0)),
                Tokenization(asked, tokenizer),
                first_shard=7,
                progress=count,
                pipeline=pipeline,
            )
        )
        assert [shard.number for shard in shards] == [7, 8, 9, 10, 11]
        assert tuple(map(sum, zip(*seen, strict=True))) == (COUNT, 2)
        assert [len(shard.broken) for shard in shards] == [1, 0, 1, 0, 0]
        made.append([(shard.end, shard.broken, [(row.key, row.label) for row in shard.rows]) for shard in shards])
        tokens = torch.stack([torch.from_numpy(row.tokens) for shard in shards for row in shard.rows])
        assert tokens.shape == (COUNT - 2, crops.count, tokenizer.num_tokens)
        made.append(tokens.tolist())
    assert made[:2] == made[2:]


def test_the_cpu_pipeline_runs_as_many_threads_as_configured(tokenizer: Tokenizer) -> None:
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
    assert sum(len(shard.rows) for shard in make_shards(given, Tokenization(JOB, tokenizer))) == COUNT
    assert len(at_work) == 2
    assert torch.get_num_threads() == before


@BOTH
def test_read_ahead_is_bounded(pipeline: Pipeline, tokenizer: Tokenizer) -> None:
    read = 0

    def endless() -> Iterator[tuple[Position, Entry]]:
        nonlocal read
        data = images(1)[0]
        while True:
            read += 1
            yield Position(0, read), Entry(str(read), None, partial(bytes, data))

    shards = make_shards(endless(), Tokenization(JOB, tokenizer), pipeline=pipeline)
    next(shards)
    shards.close()
    assert read < 40
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "prepare", "compute"))
    ]


@BOTH
def test_errors_of_the_source_are_raised(pipeline: Pipeline, tokenizer: Tokenizer) -> None:
    def failing() -> Iterator[tuple[Position, Entry]]:
        yield from entries(images(15))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(make_shards(failing(), Tokenization(JOB, tokenizer), pipeline=pipeline))
    with pytest.raises(RuntimeError, match="no such file"):
        list(
            make_shards(
                iter([(Position(0, 1), Entry("a", None, _fail))]), Tokenization(JOB, tokenizer), pipeline=pipeline
            )
        )


@BOTH
def test_no_entries_make_no_shard_and_broken_entries_an_empty_shard(pipeline: Pipeline, tokenizer: Tokenizer) -> None:
    assert list(make_shards(iter([]), Tokenization(JOB, tokenizer), pipeline=pipeline)) == []
    (shard,) = make_shards(entries([b"", b"broken", b"\xff\xd8\xff"]), Tokenization(JOB, tokenizer), pipeline=pipeline)
    assert (shard.rows, [broken.key for broken in shard.broken]) == ([], ["0000", "0001", "0002"])


@pytest.mark.parametrize("when", ["submitted", "awaited"])
def test_batches_that_do_not_fit_into_memory_are_halved(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, sizes = tiny_tokenizer(), list[int]()
    expected = [row.tokens.tolist() for row in _rows(tokenizer)]
    submit = tokenizer.submit_encode

    def short_of_memory(pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
        sizes.append(len(pixels))
        if len(pixels) <= fits:
            return submit(pixels)
        error = torch.OutOfMemoryError("CUDA out of memory")
        if when == "submitted":
            raise error
        return Mock(side_effect=error)

    monkeypatch.setattr(tokenizer, "submit_encode", short_of_memory)
    fits = 2
    assert [row.tokens.tolist() for row in _rows(tokenizer)] == expected
    assert sorted(set(sizes)) == [1, 2, 3, 5]
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        _rows(tokenizer)


def _rows(tokenizer: Tokenizer) -> list[Row]:
    shards = make_shards(
        entries(images(10)), Tokenization(replace(JOB, batch_size=5), tokenizer), pipeline=gpu_pipeline
    )
    return [row for shard in shards for row in shard.rows]


def _fail() -> bytes:
    raise RuntimeError("no such file")
