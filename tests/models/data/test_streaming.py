from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.datasets import ImageDataset, StreamingDataset, load_dataset, open_dataset
from models.errors import DataError

Sort = Callable[[str, int], Path]


def stream(folder: Path, size: int = 16) -> StreamingDataset:
    opened = open_dataset(folder, "train", size=size, cache=folder.parent / "cache", memory_limit_bytes=0)
    assert isinstance(opened, StreamingDataset)
    return opened


@pytest.fixture
def many(sort: Sort) -> Path:
    """200 cats and 100 dogs in folders."""
    sort("train/cat", 200)
    sort("val/cat", 1)
    return sort("train/dog", 100)


@pytest.mark.parametrize("kind", ["many", "plain_shards"])
def test_batches_equal_those_of_the_in_memory_dataset(request: pytest.FixtureRequest, kind: str) -> None:
    folder: Path = request.getfixturevalue(kind)
    held: ImageDataset = load_dataset(folder, "train", size=16, cache=folder.parent / "cache")
    streamed: ImageDataset = stream(folder)
    assert len(streamed) == len(held) == 300
    assert streamed.names == held.names
    assert np.array_equal(streamed.labels, held.labels)
    rows = np.array([299, 0, 7, 150, 7])
    assert torch.equal(streamed.batch(rows), held.batch(rows))
    assert torch.equal(streamed.to("cpu").batch(rows), held.to("cpu").batch(rows))


def test_the_shard_index_is_built_once(plain_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stream(plain_shards).batch(np.arange(300))
    monkeypatch.setattr("models.data.shards.read_samples", None)
    assert torch.equal(stream(plain_shards).batch(np.arange(300)), first)


def test_a_new_shard_invalidates_the_index(plain_shards: Path) -> None:
    assert len(stream(plain_shards)) == 300
    (plain_shards / "train-2.tar").write_bytes((plain_shards / "train-0.tar").read_bytes())
    assert len(stream(plain_shards)) == 450


def test_positions_select_crops(sort: Sort) -> None:
    home = sort("train/cat", 0)
    sort("val/cat", 1)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (16, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(home / "train/cat/ramp.png")
    dataset = stream(home)
    rows = np.zeros(40, dtype=np.int64)

    def lefts(positions: np.ndarray | None) -> list[int]:
        return dataset.batch(rows, positions)[:, 0, 0, 0].mul(255).round().int().tolist()

    assert lefts(None) == [24] * 40
    moved = lefts(np.linspace(0.0, 0.999, 40, dtype=np.float32)[:, None].repeat(2, axis=1))
    assert moved == sorted(moved)
    assert (moved[0], moved[-1]) == (0, 48)


def test_a_prefetched_batch_is_not_decoded_again(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stream(many)
    rows = np.arange(20)
    crops = (None, np.random.default_rng(3).random((20, 2), np.float32))
    expected = [dataset.batch(rows, positions) for positions in crops]
    submit = dataset._submit
    for positions, batch in zip(crops, expected, strict=True):
        monkeypatch.setattr(dataset, "_submit", submit)
        dataset.prefetch(rows, positions)
        monkeypatch.setattr(dataset, "_submit", None)
        assert torch.equal(dataset.batch(rows, positions), batch)


def test_another_batch_than_the_prefetched_one_is_decoded(many: Path) -> None:
    dataset = stream(many)
    expected = dataset.batch(np.arange(20))
    dataset.prefetch(np.arange(20, 40))
    assert torch.equal(dataset.batch(np.arange(20)), expected)


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(b"no image"), Path.unlink], ids=["no image", "no longer there"]
)
def test_an_unreadable_image_is_logged_once_and_replaced_by_the_next_of_its_class(
    many: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    dataset = stream(many)
    whole = dataset.batch(np.arange(300))
    damage(many / "train/cat/199.png")
    damage(many / "train/cat/000.png")
    for _ in range(2):
        batch = dataset.batch(np.arange(300))
        assert torch.equal(batch[199], whole[1])
        assert torch.equal(batch[0], whole[1])
    assert caplog.text.count("skipped cat/199.png: ") == 1
    assert caplog.text.count("skipped cat/000.png: ") == 1


def test_more_than_one_percent_unreadable_is_an_error(many: Path) -> None:
    dataset = stream(many)
    for number in (0, 2, 4, 6):
        (many / f"train/dog/{number:03d}.png").write_bytes(b"no image")
    dataset.batch(np.array([200, 202, 204]))  # three of three, but they may be the only ones
    with pytest.raises(DataError, match=r"4 of 300 samples cannot be used; first: dog/000.png: cannot identify"):
        dataset.batch(np.array([205, 206]))


def test_a_class_without_readable_images_is_an_error(sort: Sort) -> None:
    sort("train/cat", 300)
    sort("val/cat", 1)
    home = sort("train/dog", 2)
    dataset = stream(home)
    for number in range(2):
        (home / f"train/dog/{number:03d}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of class dog can be read"):
        dataset.batch(np.arange(299, 302))
