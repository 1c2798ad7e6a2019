from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import streaming as module
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
def test_it_gives_what_the_array_gives(request: pytest.FixtureRequest, kind: str) -> None:
    folder: Path = request.getfixturevalue(kind)
    held: ImageDataset = load_dataset(folder, "train", size=16, cache=folder.parent / "cache")
    streamed: ImageDataset = stream(folder)
    assert len(streamed) == len(held) == 300
    assert streamed.names == held.names
    assert np.array_equal(streamed.labels, held.labels)
    rows = np.array([299, 0, 7, 150, 7])
    assert torch.equal(streamed.batch(rows), held.batch(rows))
    assert torch.equal(streamed.to("cpu").batch(rows), held.to("cpu").batch(rows))


def test_the_index_of_shards_is_made_once(plain_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stream(plain_shards).batch(np.arange(300))
    monkeypatch.setattr("models.data.shards.tariterators", None)
    assert torch.equal(stream(plain_shards).batch(np.arange(300)), first)


def test_another_shard_makes_another_index(plain_shards: Path) -> None:
    assert len(stream(plain_shards)) == 300
    (plain_shards / "train-2.tar").write_bytes((plain_shards / "train-0.tar").read_bytes())
    assert len(stream(plain_shards)) == 450


def test_a_generator_moves_the_square_and_the_same_one_moves_it_alike(sort: Sort) -> None:
    home = sort("train/cat", 0)
    sort("val/cat", 1)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (16, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(home / "train/cat/ramp.png")
    photographs = stream(home)
    rows = np.zeros(40, dtype=np.int64)

    def lefts(generator: torch.Generator | None) -> list[int]:
        return photographs.batch(rows, generator)[:, 0, 0, 0].mul(255).round().int().tolist()

    assert lefts(None) == [24] * 40
    moved = lefts(torch.Generator().manual_seed(1))
    assert len(set(moved)) > 15
    assert max(moved) <= 48
    assert lefts(torch.Generator().manual_seed(1)) == moved
    assert lefts(torch.Generator().manual_seed(2)) != moved


def test_a_foreseen_batch_is_decoded_before_it_is_asked_for(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = stream(many)
    rows = np.arange(20)
    expected = [photographs.batch(rows), photographs.batch(rows, torch.Generator().manual_seed(3))]
    photographs.prefetch(rows)
    photographs.prefetch(rows, torch.Generator().manual_seed(3))
    monkeypatch.setattr(photographs, "_submit", None)
    assert torch.equal(photographs.batch(rows), expected[0])
    assert torch.equal(photographs.batch(rows, torch.Generator().manual_seed(3)), expected[1])


def test_of_batches_that_nobody_asks_for_the_oldest_is_given_up(many: Path) -> None:
    photographs = stream(many)
    for start in range(10):
        photographs.prefetch(np.arange(start, start + 20))
    assert len(photographs._ahead) == module.BATCHES_AHEAD
    assert photographs.batch(np.arange(20)).shape == (20, 3, 16, 16)


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(b"no image"), Path.unlink], ids=["no image", "no longer there"]
)
def test_a_damaged_photograph_is_named_once_and_the_next_of_its_class_stands_in(
    many: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    photographs = stream(many)
    whole = photographs.batch(np.arange(300))
    damage(many / "train/cat/199.png")
    damage(many / "train/cat/000.png")
    for _ in range(2):
        batch = photographs.batch(np.arange(300))
        assert torch.equal(batch[199], whole[1])
        assert torch.equal(batch[0], whole[1])
    assert caplog.text.count("left out cat/199.png: ") == 1
    assert caplog.text.count("left out cat/000.png: ") == 1


def test_more_than_one_damaged_in_a_hundred_stops(many: Path) -> None:
    photographs = stream(many)
    for number in (0, 2, 4, 6):
        (many / f"train/dog/{number:03d}.png").write_bytes(b"no image")
    photographs.batch(np.array([200, 202, 204]))  # three of three, but they may be the only ones
    with pytest.raises(DataError, match=r"4 of 300 members can not be used; first: dog/000.png: cannot identify"):
        photographs.batch(np.array([205, 206]))


def test_a_class_of_which_nothing_can_be_read_stops(sort: Sort) -> None:
    sort("train/cat", 300)
    sort("val/cat", 1)
    home = sort("train/dog", 2)
    photographs = stream(home)
    for number in range(2):
        (home / f"train/dog/{number:03d}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no photograph of the class dog can be read"):
        photographs.batch(np.arange(299, 302))
