"""Datasets of tokens, with and without workers and processes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from models.data.tokens import TokenDataset, TokenSample, TokenStream
from models.errors import DataError

IMAGES, VIEWS, K = 33, 3, 4


@pytest.fixture(scope="module", params=["npy", "jsonl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of up to nine images of three crops; the ids of a crop are its number in the folder, and more."""
    path = tmp_path_factory.mktemp("tokens")
    ids = 10 * np.arange(IMAGES * VIEWS)[:, None] + np.arange(K)
    ids = ids.reshape(IMAGES, VIEWS, K)
    for first in range(0, IMAGES, 9):
        shard, numbers = ids[first : first + 9], range(first, min(first + 9, IMAGES))
        stem = path / f"tokens-{first:06d}"
        if request.param == "npy":
            np.save(stem.with_suffix(".npy"), shard)
            rows: list[dict[str, Any]] = [{"key": f"image {number}", "label": number % 5} for number in numbers]
            written = stem.with_suffix(".keys.jsonl")
        else:
            rows = [
                {"key": f"image {number}", "view": view, "class_id": number % 5, "tokens": tokens}
                for number, image in zip(numbers, shard.tolist(), strict=True)
                for view, tokens in enumerate(image)
            ]
            written = stem.with_suffix(".jsonl")
        written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row_of(sample: TokenSample) -> int:
    """The number of a crop in the folder, after its fields were compared."""
    row = int(sample["ids"][0]) // 10
    assert sample["ids"].tolist() == [10 * row + token for token in range(K)]
    image = row // VIEWS
    assert (sample["key"], sample["view"], sample["label"]) == (f"image {image}", row % VIEWS, image % 5)
    return row


def rows_of(stream: Any) -> list[int]:
    return [row_of(sample) for sample in stream]


def loaded(stream: TokenStream, **options: Any) -> list[int]:
    return rows_of(DataLoader(stream, batch_size=None, **options))


def test_crops_by_row(folder: Path) -> None:
    dataset = TokenDataset(folder)
    assert [row_of(dataset[row]) for row in range(len(dataset))] == list(range(IMAGES * VIEWS))
    assert row_of(dataset[-1]) == IMAGES * VIEWS - 1
    with pytest.raises(IndexError):
        dataset[IMAGES * VIEWS]
    assert (dataset.num_tokens, len(dataset.keys), dataset.keys[-1]) == (K, IMAGES, f"image {IMAGES - 1}")
    assert dataset.images.tolist() == [row // VIEWS for row in range(IMAGES * VIEWS)]
    assert dataset.labels.tolist() == [image % 5 for image in range(IMAGES)]
    assert dataset.ids(np.array([98, 0, 40]))[:, 0].tolist() == [980, 0, 400]


def test_batches_of_a_data_loader(folder: Path) -> None:
    batch = next(iter(DataLoader(TokenDataset(folder), batch_size=8, shuffle=True)))
    assert (batch["ids"].shape, batch["ids"].dtype, batch["label"].shape) == ((8, K), batch["label"].dtype, (8,))
    assert batch["key"][0] == f"image {batch['ids'][0, 0] // 10 // VIEWS}"


def test_arrays_stay_in_their_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, K), np.uint16))
    dataset = TokenDataset(tmp_path)
    written = np.load(tmp_path / "a.npy", mmap_mode="r+")
    written[1] = 7
    assert dataset[1]["ids"].tolist() == [7] * K


def test_labels_may_be_texts_or_missing(tmp_path: Path) -> None:
    def dataset(*labels: Any) -> TokenDataset:
        rows = [json.dumps({"tokens": [1], "class_id": label}) for label in labels]
        (tmp_path / "a.jsonl").write_text("\n".join(rows))
        return TokenDataset(tmp_path)

    assert [sample["label"] for sample in dataset("ant", None, "bee")] == ["ant", "", "bee"]
    assert [sample["label"] for sample in dataset(None, 3)] == [-1, 3]
    with pytest.raises(DataError, match="integers and texts as labels"):
        dataset("ant", 3)


def test_crops_of_different_lengths_and_no_crops_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.uint16))
    np.save(tmp_path / "b.npy", np.zeros((3, 5), np.uint16))
    with pytest.raises(DataError, match="has crops of 4, 5 tokens"):
        TokenDataset(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="there are no tokens"):
        TokenDataset(tmp_path / "empty.jsonl")


def test_a_stream_without_a_buffer_keeps_the_stored_order(folder: Path) -> None:
    assert rows_of(TokenStream(folder, shuffle_buffer=0)) == list(range(IMAGES * VIEWS))


def test_the_order_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = TokenStream(folder, seed=seed, shuffle_buffer=20)
        stream.set_epoch(epoch)
        return rows_of(stream)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*numbers)) for numbers in ((1, 2), (1, 3), (2, 2))}) == 3
    neighbours = sum(second == first + 1 for first, second in pairwise(order(1, 2)))
    assert neighbours < 15


@pytest.mark.parametrize("world_size", [1, 3, 120])
@pytest.mark.parametrize("buffer", [0, 20])
def test_processes_and_workers_share_the_crops(folder: Path, world_size: int, buffer: int) -> None:
    shares = []
    for rank in range(world_size):
        stream = TokenStream(folder, shuffle_buffer=buffer, rank=rank, world_size=world_size)
        shares.append(rows_of(stream))
        assert stream.num_rows == len(shares[-1])
    assert Counter(row for share in shares for row in share) == Counter(range(IMAGES * VIEWS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 2 worker processes", "ignore:This process .* is multi-threaded"
)
def test_workers_share_the_crops_of_a_process_and_see_the_next_epoch(folder: Path) -> None:
    stream = TokenStream(folder, shuffle_buffer=20, rank=1, world_size=2)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append(rows_of(loader))
    other = loaded(TokenStream(folder, shuffle_buffer=20, rank=0, world_size=2))
    assert Counter(epochs[0] + other) == Counter(range(IMAGES * VIEWS))
    assert epochs[0] != epochs[1]
