"""Batches split over the cores of a CPU."""

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
def test_a_split_batch_has_the_same_results_in_order(count: int) -> None:
    batch = torch.arange(3 * count).view(count, 3)
    doubled, total = BatchSplitter(CPU).run(lambda x: (x * 2, x.sum(1)), batch)
    assert torch.equal(doubled, batch * 2)
    assert torch.equal(total, batch.sum(1))


def test_parts_run_at_the_same_time_and_share_the_threads() -> None:
    splitter = BatchSplitter(CPU)
    for parts, threads in ((4, 1), (2, 2), (3, 1)):
        together = threading.Barrier(parts, timeout=20)

        def compute(_: int, together: threading.Barrier = together) -> tuple[int, bool]:
            together.wait()
            return torch.get_num_threads(), torch.is_inference_mode_enabled()

        assert splitter.map(compute, range(parts)) == [(threads, True)] * parts
        assert torch.get_num_threads() == 4


def test_a_single_image_runs_in_the_calling_thread() -> None:
    assert BatchSplitter(CPU).num_parts(1) == 1
    assert BatchSplitter(CPU).map(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def test_parts_do_not_exceed_the_maximum() -> None:
    splitter = BatchSplitter(CPU)
    assert [splitter.num_parts(count, 3) for count in (0, 1, 4, 12, 13)] == [1, 1, 4, 4, 5]
    threads, sizes = set(), []

    def compute(part: torch.Tensor) -> tuple[torch.Tensor]:
        threads.add(torch.get_num_threads())
        sizes.append(len(part))
        return (part,)

    [rows] = splitter.run(compute, torch.arange(13), 3)
    assert torch.equal(rows, torch.arange(13))
    assert sorted(sizes) == [2, 2, 3, 3, 3]
    assert threads == {1}


def test_with_one_core_all_parts_run_in_the_calling_thread() -> None:
    torch.set_num_threads(1)
    assert BatchSplitter(CPU).map(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3


def test_batches_for_a_gpu_are_not_split() -> None:
    assert BatchSplitter(torch.device("cuda")).num_parts(64, 8) == 1


def test_a_failure_is_raised_after_all_parts_have_ended() -> None:
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


def test_the_setting_of_later_threads_is_unchanged() -> None:
    BatchSplitter(CPU).map(lambda _: None, range(4))
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [4]
