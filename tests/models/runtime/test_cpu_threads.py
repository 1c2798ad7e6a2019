"""Batches shared by the cores of a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from models.runtime.cpu_threads import BatchSplitter, torch_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(4):
        yield


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9])
def test_a_batch_in_parts_gives_what_the_whole_one_gives_in_its_order(count: int) -> None:
    batch = torch.arange(3 * count).view(count, 3)
    doubled, total = BatchSplitter(CPU).divided(lambda x: (x * 2, x.sum(1)))(batch)
    assert torch.equal(doubled, batch * 2)
    assert torch.equal(total, batch.sum(1))


def test_every_core_has_a_part_at_the_same_time_and_the_threads_are_shared_out() -> None:
    cores = BatchSplitter(CPU)
    for parts, threads in ((4, 1), (2, 2), (3, 1)):
        together = threading.Barrier(parts, timeout=20)

        def compute(_: int, together: threading.Barrier = together) -> tuple[int, bool]:
            together.wait()
            return torch.get_num_threads(), torch.is_inference_mode_enabled()

        assert cores.map(compute, range(parts)) == [(threads, True)] * parts
        assert torch.get_num_threads() == 4


def test_one_image_has_all_threads_and_stays_in_the_thread_that_calls() -> None:
    assert BatchSplitter(CPU).parts(1) == 1
    assert BatchSplitter(CPU).map(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def test_parts_have_no_more_images_than_they_may() -> None:
    cores = BatchSplitter(CPU)
    assert [cores.parts(count, 3) for count in (0, 1, 4, 12, 13)] == [1, 1, 4, 4, 5]
    threads, sizes = set(), []

    def compute(part: torch.Tensor) -> tuple[torch.Tensor]:
        threads.add(torch.get_num_threads())
        sizes.append(len(part))
        return (part,)

    [rows] = cores.divided(compute, 3)(torch.arange(13))
    assert torch.equal(rows, torch.arange(13))
    assert sorted(sizes) == [2, 2, 3, 3, 3]
    assert threads == {1}


def test_one_core_computes_all_parts_in_the_thread_that_calls() -> None:
    torch.set_num_threads(1)
    assert BatchSplitter(CPU).map(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3


def test_a_gpu_is_given_batches_whole() -> None:
    assert BatchSplitter(torch.device("cuda")).parts(64, 8) == 1


def test_a_part_that_fails_fails_the_batch_when_no_other_still_reads_it() -> None:
    failed, finished = threading.Event(), threading.Event()

    def compute(part: int) -> None:
        if part == 0:
            failed.set()
            raise ValueError("part 0")
        assert failed.wait(20)
        finished.set()

    with pytest.raises(ValueError, match="part 0"):
        BatchSplitter(CPU).map(compute, range(2))
    assert finished.is_set()


def test_threads_that_begin_later_have_as_many_of_their_own_as_before() -> None:
    BatchSplitter(CPU).map(lambda _: None, range(4))
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [4]
