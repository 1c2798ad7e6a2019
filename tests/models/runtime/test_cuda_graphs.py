"""Recorded batch sizes, padding and fallback of graphed functions, without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.runtime.cuda_graphs import GraphedFunction
from tests.recorders import CallingRecorder
from tests.tiny_models import tiny_generator, tiny_tokenizer


@pytest.fixture
def recorder() -> CallingRecorder:
    return CallingRecorder()


class Doubling:
    """Doubles numbers and records the batch sizes of its calls."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.graphed = GraphedFunction(
            self.double, example=lambda size: torch.zeros(size, 2), variants=lambda size: [(0,), (size,)]
        )

    def double(self, inputs: torch.Tensor, added: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.sizes.append(len(inputs))
        return inputs * 2 + added, inputs.sum(1)


def rows(count: int, start: int = 1) -> torch.Tensor:
    return torch.arange(start, start + 2 * count, dtype=torch.float32).view(count, 2)


def test_a_batch_is_padded_to_the_next_recorded_size_and_trimmed(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed.record([1, 2, 4, 8], recorder)
    assert doubling.graphed.sizes == [1, 2, 4, 8]
    for count, size in ((1, 1), (2, 2), (3, 4), (5, 8), (8, 8)):
        assert doubling.graphed.padded(count) == size
        doubled, sums = doubling.graphed(rows(count), 0)
        assert torch.equal(doubled, rows(count) * 2)
        assert torch.equal(sums, rows(count).sum(1))
        assert doubling.sizes[-1] == size
    assert recorder.replays == 5


def test_results_are_not_overwritten_by_later_replays(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed.record([4], recorder)
    first, _ = doubling.graphed(rows(3), 0)
    doubling.graphed(rows(3, start=100), 0)
    assert torch.equal(first, rows(3) * 2)


def test_sizes_are_recorded_in_descending_order(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed.record([1, 2, 4], recorder)
    assert doubling.sizes == [4, 4, 2, 2, 1, 1]  # each with both of its variants


def test_each_variant_has_its_own_graph(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed.record([2], recorder)
    assert torch.equal(doubling.graphed(rows(1), 0)[0], rows(1) * 2)
    assert torch.equal(doubling.graphed(rows(1), 2)[0], rows(1) * 2 + 2)
    assert recorder.replays == 2
    assert torch.equal(doubling.graphed(rows(1), 1)[0], rows(1) * 2 + 1)
    assert recorder.replays == 2  # not recorded, so called


def test_without_a_large_enough_recording_the_function_is_called_directly(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed(rows(3), 0)
    doubling.graphed.record([2], recorder)
    doubling.graphed(rows(3), 0)
    assert doubling.sizes == [3, 2, 2, 3]
    assert recorder.replays == 0


def test_discarded_graphs_are_not_replayed(recorder: CallingRecorder) -> None:
    doubling = Doubling()
    doubling.graphed.record([1, 2, 4], recorder)
    doubling.graphed.discard(above=2)
    assert doubling.graphed.sizes == [1, 2]
    doubling.graphed(rows(4), 0)
    assert recorder.replays == 0
    doubling.graphed.discard()
    assert doubling.graphed.sizes == []


def test_a_tokenizer_with_graphs_has_the_same_ids_and_pixels(recorder: CallingRecorder) -> None:
    plain, graphed = tiny_tokenizer(), tiny_tokenizer()
    for function in (graphed.encoder, graphed.decoder):
        function.record([1, 2, 4], recorder)
    for count in (1, 3, 4, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        ids = plain.encode(images)
        assert torch.equal(graphed.encode(images), ids)
        assert (graphed.decode(ids).int() - plain.decode(ids).int()).abs().max() <= 1
    assert recorder.replays >= 6


@pytest.mark.parametrize("guided", [True, False])
def test_a_generator_with_graphs_has_the_same_tokens(recorder: CallingRecorder, *, guided: bool) -> None:
    plain, graphed = tiny_generator(), tiny_generator()
    graphed.stepper.record([1, 2, 4], recorder)
    labels = [1, 2, None] if guided else [None] * 3  # rows with and without guidance, padded by one
    expected = plain.generate(labels, seeds=[1, 2, 3], preset="demo", steps=12)
    assert torch.equal(graphed.generate(labels, seeds=[1, 2, 3], preset="demo", steps=12), expected)
    assert recorder.replays >= 12
