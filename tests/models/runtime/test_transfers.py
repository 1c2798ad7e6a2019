"""Copies between host and device, as far as they can be tested without a GPU."""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import pytest
import torch

from models.runtime.transfers import HostTransfers, _PendingCopy, base_array, pin, transfers_for

CPU = torch.device("cpu")


def test_on_a_cpu_results_are_new_tensors_or_written_into_the_given_one() -> None:
    transfers = transfers_for(CPU)
    assert isinstance(transfers, HostTransfers)
    host, place = torch.arange(6).view(3, 2), torch.zeros(3, 2, dtype=torch.int64)
    doubled, total = transfers.run(host, lambda x: (x * 2, x.sum(1)))()
    assert doubled.tolist() == [[0, 2], [4, 6], [8, 10]]
    assert total.tolist() == [1, 5, 9]
    assert transfers.run(host, lambda x: (x * 3, x), place)()[0] is place
    assert torch.equal(place, host * 3)


def test_pinning_does_nothing_for_a_cpu() -> None:
    pin(np.zeros((4, 4))[:, ::2], CPU)()


def test_the_base_array_lives_as_long_as_its_views() -> None:
    whole = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    rows = whole.reshape(4, 32, 32)
    for part in (whole, rows, rows[1:3], rows[1][2:]):
        assert base_array(part) is whole
    gone: list[bool] = []
    weakref.finalize(whole, gone.append, True)
    part = rows[1:3]
    del whole, rows
    assert gone == []
    del part
    assert gone == [True]


class Event:
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


@pytest.mark.parametrize("awaited", [True, False])
def test_memory_is_held_until_the_last_copy_is_done(*, awaited: bool) -> None:
    event, result = Event(), torch.ones(2)
    arrival = _PendingCopy(event, (torch.zeros(2),), (result,))  # type: ignore[arg-type]
    if awaited:
        assert arrival()[0] is result
        assert arrival._held == ()
    assert event.waits == awaited
    del arrival
    assert event.waits == 1
