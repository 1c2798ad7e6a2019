"""Measured rounding tolerance, and the repetition of close decisions unbatched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from models import Tokenizer
from models.runtime.cpu_threads import torch_threads
from models.runtime.precision import FORMATS, Precision
from models.runtime.rounding_tolerance import MeasuredTolerance, measure_tolerance
from tests.recorders import CallingRecorder
from tests.tiny_models import tiny_generator, tiny_tokenizer


class Margins:
    """Margins that move by ``step`` for every other image in the batch. Each batch takes a second."""

    def __init__(self, step: float, *, infinite: bool = False) -> None:
        self.step = step
        self.own = torch.tensor([[0.1, float("inf") if infinite else 0.2], [0.3, 0.4], [0.5, 0.6]])
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> torch.Tensor:
        self.batches.append(list(items))
        return self.own[list(items)] + self.step * (len(items) - 1)

    def tolerance(self, sizes: Sequence[int], seconds: float = 60.0) -> MeasuredTolerance | None:
        return measure_tolerance(
            self,
            unbatched=lambda item: self.own[item : item + 1],
            count=3,
            sizes=sizes,
            minimum=1e-5,
            seconds=seconds,
            clock=lambda: len(self.batches),
        )


def test_the_tolerance_is_eight_times_the_largest_change_of_margins() -> None:
    margins = Margins(1e-3)
    measured = margins.tolerance([4, 2])
    assert measured is not None
    assert measured.tolerance == pytest.approx(8 * 3e-3, rel=1e-3)
    assert measured.size == 4
    assert margins.batches == [[0, 1], [2, 0], [0, 1, 2, 0]]  # every item at every size, again where they are too few


def test_without_changes_the_tolerance_is_the_minimum() -> None:
    assert Margins(0.0, infinite=True).tolerance([2]) == MeasuredTolerance(1e-5, 2)


def test_measuring_stops_at_the_time_limit() -> None:
    assert Margins(0.0).tolerance([2], seconds=-1.0) is None
    assert Margins(0.0).tolerance([2, 3], seconds=1.0) is None  # two batches of two
    assert Margins(0.0).tolerance([2, 3], seconds=2.0) == MeasuredTolerance(1e-5, 2)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def test_calibration_lowers_the_default_tolerance(images: np.ndarray) -> None:
    tokenizer = tiny_tokenizer()
    default = tokenizer.tolerance
    tokenizer.calibrate(images, [2, 3], seconds=-1.0)
    assert tokenizer.tolerance == default
    tokenizer.calibrate(images, [2, 3], seconds=60.0)
    assert 1e-5 <= tokenizer.tolerance < default
    low = tiny_tokenizer(dtype="bfloat16")
    low.calibrate(images, [2], seconds=60.0)
    assert low.tolerance == default  # bfloat16 is not batch-invariant


@pytest.mark.usefixtures("one_core")
def test_a_cpu_splits_batches_to_measured_sizes(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer.encode(images)
    monkeypatch.setattr(
        "models.networks.tokenizer_functions.measure_tolerance", lambda *_, **__: MeasuredTolerance(1e-9, 4)
    )
    tokenizer.calibrate(images, [2, 4, 6], seconds=60.0)
    sizes = spy(tokenizer)
    assert torch.equal(tokenizer.encode(images), expected)
    assert sizes == [(3, 0), (3, 0)]
    tokenizer.calibrate(images, [2, 4, 6], seconds=60.0)
    assert torch.equal(tokenizer.encode(images[:4]), expected[:4])
    assert sizes[2:] == [(4, 0)]


def test_measured_sizes_are_divided_by_the_number_of_cores(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(
        "models.networks.tokenizer_functions.measure_tolerance", lambda *_, **__: MeasuredTolerance(1e-9, 3)
    )
    with torch_threads(2):
        tokenizer.calibrate(images, [2, 3, 6], seconds=60.0)  # of three images one core has two
        sizes = spy(tokenizer)
        tokenizer.encode(images)
    assert sizes == [(2, 0)] * 3


@pytest.mark.usefixtures("one_core")
def test_only_close_decisions_are_repeated_unbatched(images: np.ndarray) -> None:
    tokenizer = tiny_tokenizer()
    sizes = spy(tokenizer)
    tokenizer.tolerance = 0.0
    tokenizer.encode(images)
    assert sizes == [(6, 0)]
    tokenizer.tolerance = 1e9
    tokenizer.encode(images)
    assert sizes == [(6, 0), (6, 0), *[(1, 0)] * 6]


def spy(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Batch sizes that the tokenizer runs, and the variant."""
    sizes: list[tuple[int, int]] = []
    encode = tokenizer.encoder._function
    tokenizer.encoder._function = lambda inputs, exactly: (
        sizes.append((len(inputs), exactly)),
        encode(inputs, exactly),
    )[1]
    return sizes


@pytest.fixture
def one_core() -> Iterator[None]:
    """Batches are not split."""
    with torch_threads(1):
        yield


@pytest.fixture
def three_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows tf32x3 on a CPU."""
    kind = FORMATS["tf32x3"]
    of = Precision.of
    monkeypatch.setattr(
        Precision, "of", lambda name, device: Precision(kind, kind, kind) if name == "tf32x3" else of(name, device)
    )


@pytest.mark.usefixtures("three_passes", "one_core")
def test_close_decisions_in_tf32x3_are_repeated_in_float32(images: np.ndarray) -> None:
    exact, three = tiny_tokenizer(), tiny_tokenizer(dtype="tf32x3")
    sizes = spy(three)
    three.tolerance = 1e9
    assert torch.equal(three.encode(images[:2]), exact.encode(images[:2]))
    assert torch.equal(three.encode(images[:1]), exact.encode(images[:1]))
    assert sizes == [(2, 0), (1, 1), (1, 1), (1, 0), (1, 1)]
    assert not torch.equal(three.latents(images), exact.latents(images))
    assert three.revision == f"{exact.revision}-tf32x3"


@pytest.mark.usefixtures("three_passes")
def test_both_variants_of_a_single_image_are_recorded(images: np.ndarray) -> None:
    exact, three, recorder = tiny_tokenizer(), tiny_tokenizer(dtype="tf32x3"), CallingRecorder()
    three.encoder.record([1, 2], recorder)
    three.tolerance = 1e9
    assert torch.equal(three.encode(images[:2]), exact.encode(images[:2]))
    assert recorder.recorded == [2, 1, 1]
    assert recorder.replays == 3


@pytest.mark.usefixtures("three_passes")
def test_a_tf32x3_generator_repeats_close_decisions_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.generation._TOLERANCE", 1e9)
    exact, three = tiny_generator(), tiny_generator(dtype="tf32x3")
    three.stepper.record([1, 2], CallingRecorder())
    labels, seeds = [1, None], [3, 4]
    assert torch.equal(three.generate(labels, seeds=seeds), exact.generate(labels, seeds=seeds))
    assert three.stepper._variants(1) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert exact.stepper._variants(1) == [(0, 0), (1, 0)]
