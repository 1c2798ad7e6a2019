"""Batch limits from the speed and memory of a device and the time budget. Devices here are tables of seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from service.inference.batch_limits import batch_sizes, find_batch_limit
from service.inference.stopwatch import cpu_seconds, wall_seconds


class Trial:
    """A device that takes ``cost(size)`` seconds of simulated time and has memory for ``fits`` images."""

    def __init__(self, cost: Callable[[int], float], *, fits: int = 10_000) -> None:
        self.cost, self.fits = cost, fits
        self.now = 0.0
        self.runs: list[int] = []

    def run(self, size: int) -> None:
        self.runs.append(size)
        if size > self.fits:
            raise MemoryError
        self.now += self.cost(size)

    def measure(self, run: Callable[[], object]) -> float:
        begun = self.now
        run()
        return self.now - begun

    def limit(self, *, largest: int = 1024, seconds: float = 0.5, trial_seconds: float = 1.5) -> int:
        return find_batch_limit(
            self.run,
            largest=largest,
            seconds=seconds,
            trial_seconds=trial_seconds,
            is_out_of_memory=lambda error: isinstance(error, MemoryError),
            measure=self.measure,
            clock=lambda: self.now,
        )


def test_sizes_are_powers_of_two_and_the_largest_itself() -> None:
    assert list(batch_sizes(1)) == [1]
    assert list(batch_sizes(8)) == [1, 2, 4, 8]
    assert list(batch_sizes(12)) == [1, 2, 4, 8, 12]


def test_sizes_grow_until_two_in_a_row_gain_nothing() -> None:
    trial = Trial(lambda size: 0.0001 * max(size, 8))
    assert trial.limit() == 32
    assert max(trial.runs) == 32  # the gain ended at 8; 16 and 32 are as fast, and no slower


def test_a_size_that_is_slower_again_is_not_chosen() -> None:
    assert Trial(lambda size: 0.0001 * max(size, 8) * (2 if size > 8 else 1)).limit() == 8


def test_one_size_that_gains_nothing_does_not_end_the_search() -> None:
    costs = {1: 0.01, 2: 0.02, 4: 0.02, 8: 0.04, 16: 0.08}
    assert Trial(lambda size: costs[size]).limit() == 16


def test_no_batch_takes_longer_than_the_budget() -> None:
    trial = Trial(lambda size: 0.01 + 0.001 * size)
    assert trial.limit(seconds=0.05) == 32
    assert trial.runs.count(64) == 1


def test_a_model_slower_than_the_budget_runs_one_image_at_a_time_and_is_run_once() -> None:
    trial = Trial(lambda size: 3.0 * size)
    assert trial.limit() == 1
    assert trial.runs == [1]


def test_one_time_costs_of_the_first_run_do_not_count() -> None:
    costs = iter([0.9])
    assert Trial(lambda _: next(costs, 0.001)).limit(largest=64) == 64


def test_memory_ends_the_search_without_an_error() -> None:
    assert Trial(lambda _: 0.01, fits=20).limit() == 16


def test_one_image_that_does_not_fit_and_any_other_failure_are_errors() -> None:
    with pytest.raises(MemoryError):
        Trial(lambda _: 0.01, fits=0).limit()

    def broken(size: int) -> float:
        if size > 2:
            raise RuntimeError("broken")
        return 0.01

    with pytest.raises(RuntimeError, match="broken"):
        Trial(broken).limit()


@pytest.mark.parametrize("largest", [1, 6, 8])
def test_the_largest_is_a_bound_that_is_tried_itself(largest: int) -> None:
    trial = Trial(lambda _: 0.001)
    assert trial.limit(largest=largest) == largest
    assert max(trial.runs) == largest


@pytest.mark.parametrize(("budget", "limit"), [(4.0, 16), (60.0, 32)])
def test_a_slow_search_ends_with_an_estimate_from_the_fastest_size(budget: float, limit: int) -> None:
    trial = Trial(lambda _: 0.4)
    assert trial.limit(seconds=budget) == limit  # five images a second: twenty in four seconds; 32 are believed at most
    assert max(trial.runs) == 2


def test_a_size_that_would_exceed_the_search_time_is_not_tried() -> None:
    trial = Trial(lambda size: 0.8 * size)
    assert trial.limit(seconds=20.0) == 16
    assert max(trial.runs) == 1


@pytest.mark.parametrize(("seconds", "limit"), [(0.1, 8), (0.01, 1), (0.005, 1), (5.0, 32)])
def test_without_search_time_one_image_gives_the_estimate(seconds: float, limit: int) -> None:
    trial = Trial(lambda size: 0.01 * size)
    assert trial.limit(seconds=seconds, trial_seconds=0.0) == limit
    assert max(trial.runs) == 1


def test_on_an_idle_machine_a_batch_takes_the_elapsed_time() -> None:
    assert wall_seconds(threading.Event().is_set) < 1.0
    assert 0.0 <= cpu_seconds(threading.Event().is_set) < 1.0


def test_a_preempted_batch_is_measured_by_the_cpu_time_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, times = iter([5, 6]), iter([10.0, 10.6])
    threads = [4]
    monkeypatch.setattr("service.inference.stopwatch._preemptions", lambda: next(counts))
    monkeypatch.setattr("service.inference.stopwatch.wall_seconds", lambda run: (run(), 2.0)[1])
    monkeypatch.setattr("time.process_time", lambda: next(times))
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[-1])
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    during: list[int] = []
    assert cpu_seconds(lambda: during.append(threads[-1])) == pytest.approx(0.15)
    assert during == [4, 1]
    assert threads[-1] == 4
