import io
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.datasets import InMemoryDataset, StreamingDataset, load_dataset, open_dataset
from models.errors import DataError
from tests.fake_cuda import FakeCuda


def load(folder: Path) -> InMemoryDataset:
    return load_dataset(folder, "train", size=16, cache=folder.parent / "cache")


AddShard = Callable[[dict[str, bytes]], None]


@pytest.fixture
def add_shard(shards: Path, add_member: Callable[[tarfile.TarFile, str, bytes], None]) -> AddShard:
    """Adds a third shard to the two."""

    def add(members: dict[str, bytes]) -> None:
        with tarfile.open(shards / "train-0002.tar", "w") as shard:
            for name, content in members.items():
                add_member(shard, name, content)

    return add


def test_shards_are_read_in_order_into_one_array(shards: Path) -> None:
    dataset = load(shards)
    assert dataset.images.shape == (300, 16, 16, 3)
    assert dataset.labels.tolist() == [index % 2 for index in range(300)]
    assert dataset.names == ("pets/cat", "pets/dog")


def test_a_batch_is_rgb_from_zero_to_one(shards: Path) -> None:
    dataset = load(shards)
    batch = dataset.batch(np.array([7, 3]))
    assert batch.shape == (2, 3, 16, 16)
    torch.testing.assert_close(batch[1].permute(1, 2, 0) * 255, torch.tensor(dataset.images[3]).float())


def test_a_second_call_reads_the_cache_only(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(shards)
    monkeypatch.setattr("models.data.shards.read_samples", None)
    assert np.array_equal(load(shards).images, first.images)


def test_a_changed_shard_is_decoded_again(
    shards: Path, add_shard: AddShard, encoded_image: Callable[..., bytes]
) -> None:
    assert len(load(shards)) == 300
    add_shard({"x.png": encoded_image(1), "x.cls": b"0"})
    assert len(load(shards)) == 301


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda _: {"bad.png": b"not an image", "bad.cls": b"0"}, "cannot identify"),
        (lambda image: {"bad.png": image(0)[:200], "bad.cls": b"0"}, "truncated"),
        (lambda image: {"bad.png": image(0), "bad.cls": b"cat"}, "invalid literal"),
        (lambda image: {"bad.png": image(0), "bad.cls": b"2"}, "class 2 is not in classes.json"),
        (lambda image: {"bad.png": image(0)}, "not an image with a class"),
    ],
    ids=["no image", "half an image", "no number", "unknown class", "no class"],
)
def test_a_corrupt_sample_is_logged_and_skipped(
    shards: Path,
    add_shard: AddShard,
    encoded_image: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Callable[..., bytes]], dict[str, bytes]],
    named: str,
) -> None:
    add_shard(damage(encoded_image))
    assert len(load(shards)) == 300
    assert "train-0002.tar/bad: " in caplog.text
    assert named in caplog.text


def test_a_truncated_shard_is_logged_and_the_others_are_read(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (shards / "train-0000.tar.gz").read_bytes()
    (shards / "train-0002.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert 340 < len(load(shards)) < 450
    assert "train-0002.tar.gz" in caplog.text


def test_more_than_one_percent_bad_samples_is_an_error(shards: Path, add_shard: AddShard) -> None:
    add_shard({f"bad{i}.png": b"" for i in range(4)})
    with pytest.raises(DataError, match=r"4 of 304 samples cannot be used; first: train-0002.tar/bad0"):
        load(shards)


def test_a_folder_without_shards_of_a_split_is_an_error_that_names_a_pattern(shards: Path) -> None:
    with pytest.raises(DataError, match=r"no archive in .* names the split val, as val-0000.tar does"):
        load_dataset(shards, "val", size=16, cache=shards)


@pytest.fixture
def oblong(sort: Callable[[str, int], Path]) -> Path:
    """A folder of wide, high and square images."""
    sort("val/cat", 1)
    home = sort("train/cat", 0)
    noise = np.random.default_rng(0)
    for number, sides in enumerate([(16, 40, 3), (37, 20, 3), (16, 16, 3), (60, 33, 3)]):
        Image.fromarray(noise.integers(0, 256, sides, np.uint8)).save(home / "train/cat" / f"{number}.png")
    return home


def opened(folder: Path, **options: object) -> InMemoryDataset | StreamingDataset:
    return open_dataset(folder, "train", size=16, cache=folder.parent / "cache", **options)  # type: ignore[arg-type]


def test_crops_of_images_in_memory_are_those_of_streamed_ones(oblong: Path) -> None:
    held, streamed = opened(oblong, uncropped=True), opened(oblong, memory_limit_bytes=0)
    assert isinstance(held, InMemoryDataset)
    rows = np.array([3, 0, 1, 2, 1, 0, 3])
    for seed in range(5):
        positions = np.random.default_rng(seed).random((len(rows), 2), np.float32)
        assert torch.equal(held.batch(rows, positions), streamed.batch(rows, positions))
    assert torch.equal(held.batch(rows), streamed.batch(rows))
    assert not torch.equal(held.batch(rows), held.batch(rows, positions))
    assert torch.equal(held.batch(rows), load(oblong).batch(rows))


def test_uncropped_images_need_half_as_much_memory_again(oblong: Path) -> None:
    needed = 4 * 16 * 16 * 3 * 3 // 2
    assert isinstance(opened(oblong, uncropped=True, memory_limit_bytes=needed), InMemoryDataset)
    assert isinstance(opened(oblong, uncropped=True, memory_limit_bytes=needed - 1), StreamingDataset)


def test_the_fingerprint_changes_with_any_image(oblong: Path) -> None:
    first = opened(oblong).fingerprint
    assert opened(oblong, memory_limit_bytes=0).fingerprint == first != ""
    (oblong / "train/cat/1.png").write_bytes((oblong / "train/cat/0.png").read_bytes())
    assert opened(oblong).fingerprint != first


def test_crops_of_images_on_a_device_are_those_of_the_cpu(oblong: Path) -> None:
    held = opened(oblong, uncropped=True)
    rows, positions = np.array([3, 0, 1]), np.random.default_rng(0).random((3, 2), np.float32)
    with nullcontext() if torch.cuda.is_available() else FakeCuda():
        placed = held.to("cuda").kept_on_device()
        assert isinstance(placed, InMemoryDataset)
        assert placed.resident is not None
        assert torch.equal(placed.batch(rows, positions).cpu(), held.batch(rows, positions))


@pytest.mark.parametrize("free", [None, 1000], ids=["it fits", "it does not fit"])
def test_batches_on_a_device_are_those_of_the_cpu(
    shards: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    held = load(shards)
    with nullcontext() if torch.cuda.is_available() else FakeCuda():
        if free is not None:
            monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, free))
        compare_on_device(held, free)


def compare_on_device(held: InMemoryDataset, free: int | None) -> None:
    placed = held.to("cuda").kept_on_device()
    assert (placed.resident is not None) is (free is None)
    streamed = StreamingDataset(ArraySource(held), 16, device="cuda")
    for dataset in (placed, streamed):
        batch = dataset.batch(np.array([7, 3, 7]))
        assert batch.device.type == "cuda"
        assert torch.equal(batch.cpu(), held.batch(np.array([7, 3, 7])))


class ArraySource:
    """The images of an array as files."""

    def __init__(self, dataset: InMemoryDataset) -> None:
        self.labels, self.names = dataset.labels, dataset.names
        self._images = dataset.images

    def name(self, row: int) -> str:
        return str(row)

    def read(self, row: int) -> bytes:
        Image.fromarray(self._images[row]).save(buffer := io.BytesIO(), "png")
        return buffer.getvalue()
