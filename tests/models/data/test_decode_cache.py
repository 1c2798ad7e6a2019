import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.data import decode_cache
from models.data.datasets import InMemoryDataset, StreamingDataset, load_dataset, open_dataset
from models.data.decoding import decode_image
from models.errors import DataError


def load(folder: Path, cache: Path) -> InMemoryDataset:
    return load_dataset(folder, "train", size=16, cache=cache)


def kept(cache: Path) -> set[str]:
    """The kinds of files, but for those of the index."""
    return {file.suffix for file in cache.iterdir()} - {".lock", ".npz"}


def test_progress_is_called_once_for_every_image(plain_shards: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    for _ in range(2):
        open_dataset(
            plain_shards, "train", size=16, cache=tmp_path / "cache", progress=lambda *args: heard.append(args)
        )
    assert heard == [(done, 300) for done in range(1, 301)]


def test_concurrent_calls_decode_once(plain_shards: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []

    def opened(_: int) -> InMemoryDataset | StreamingDataset:
        return open_dataset(
            plain_shards, "train", size=16, cache=tmp_path / "cache", progress=lambda *args: heard.append(args)
        )

    with ThreadPoolExecutor(2) as pool:
        assert [len(photographs) for photographs in pool.map(opened, range(2))] == [300, 300]
    assert len(heard) == 300


def test_no_partial_files_remain(plain_shards: Path, tmp_path: Path) -> None:
    load(plain_shards, tmp_path / "cache")
    assert kept(tmp_path / "cache") == {".images", ".npy"}


def test_a_killed_call_is_restarted_from_the_beginning(plain_shards: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from models.data.datasets import open_dataset\n"
        "die = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == 200 else None\n"
        f"open_dataset(Path({str(plain_shards)!r}), 'train', size=16, cache=Path('cache'), progress=die)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert kept(tmp_path / "cache") == {".partial"}
    photographs = load(plain_shards, tmp_path / "cache")
    assert np.array_equal(photographs.images, load(plain_shards, tmp_path / "another").images)
    assert kept(tmp_path / "cache") == {".images", ".npy"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_and_leaves_no_files(plain_shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load(plain_shards, cache)
    images = next(cache.glob("*.images"))
    shutil.rmtree(cache)
    cache.mkdir()
    (cache / f"{images.name}.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot store 0.0 GB .* in .*cache: No space left on device; choose another"):
        load(plain_shards, cache)
    assert kept(cache) == set()


def test_images_are_removed_if_the_labels_cannot_be_written(
    plain_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(DataError, match="No space left on device"):
        load(plain_shards, tmp_path / "cache")
    assert kept(tmp_path / "cache") == set()


def test_too_little_disk_space_is_an_error_before_decoding(
    plain_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300 * 16 * 16 * 3))
    with pytest.raises(DataError, match=r"0.0 GB are free; choose another cache folder"):
        load(plain_shards, tmp_path / "cache")
    assert kept(tmp_path / "cache") == set()


def test_too_many_bad_samples_stop_decoding_early(tmp_path: Path) -> None:
    folder = tmp_path / "folders" / "train" / "cat"
    folder.mkdir(parents=True)
    (tmp_path / "folders" / "val").mkdir()
    (tmp_path / "folders" / "val" / "0.jpg").write_bytes(b"")
    for number in range(1000):
        (folder / f"{number:04d}.jpg").write_bytes(b"no image")
    done: list[int] = []
    with pytest.raises(DataError, match=r"11 of 1000 samples cannot be used; first: cat/0000.jpg: cannot identify"):
        open_dataset(
            tmp_path / "folders", "train", size=16, cache=tmp_path / "cache", progress=lambda now, _: done.append(now)
        )
    assert len(done) == 10
    assert kept(tmp_path / "cache") == set()


@pytest.mark.parametrize("size", [8, 16, 24])
def test_each_image_size_has_its_own_cache_files(plain_shards: Path, tmp_path: Path, size: int) -> None:
    for each in (16, size):
        photographs = load_dataset(plain_shards, "train", size=each, cache=tmp_path / "cache")
        assert photographs.images.shape == (300, each, each, 3)


def test_a_memory_limit_of_exactly_the_needed_size_suffices(
    plain_shards: Path, tmp_path: Path, encoded_image: Callable[..., bytes]
) -> None:
    needed = 300 * 16 * 16 * 3
    for limit, held in ((needed, True), (needed - 1, False), (needed, True)):
        opened = open_dataset(plain_shards, "train", size=16, cache=tmp_path / "cache", memory_limit_bytes=limit)
        assert isinstance(opened, InMemoryDataset) is held


def test_only_a_few_images_are_read_ahead(encoded_image: Callable[..., bytes]) -> None:
    read: list[int] = []

    class Many:
        labels, names = np.zeros(10_000, np.int64), ("",)

        def name(self, row: int) -> str:
            return str(row)

        def read(self, row: int) -> bytes:
            read.append(row)
            return encoded_image(0)

    results = decode_cache._decode_in_order(Many(), lambda content: decode_image(content, 16))
    next(results)
    assert len(read) <= 4 * decode_cache.THREADS + 1
    results.close()
    assert len(read) <= 4 * decode_cache.THREADS + 1
