"""Datasets in class folders and in uncompressed shards."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

AddMember = Callable[[tarfile.TarFile, str, bytes], None]
EncodedImage = Callable[..., bytes]
Sort = Callable[[str, int], Path]


@pytest.fixture
def sort(tmp_path: Path, encoded_image: EncodedImage) -> Sort:
    """Writes different 16x16 images into a folder below ``tmp_path / "data"``, which it returns."""

    def put(folder: str, count: int) -> Path:
        home = tmp_path / "data"
        (home / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (home / folder / f"{number:03d}.png").write_bytes(encoded_image(number))
        return home

    return put


@pytest.fixture(scope="session")
def packed() -> dict[str, bytes]:
    """Cache of shards created by earlier tests, by name."""
    return {}


@pytest.fixture
def plain_shards(tmp_path: Path, add_member: AddMember, encoded_image: EncodedImage, packed: dict[str, bytes]) -> Path:
    """Two uncompressed tars of 150 images each in three classes, without ``classes.json``."""
    home = tmp_path / "plain"
    home.mkdir()
    for number in range(2):
        file = home / f"train-{number}.tar"
        if file.name not in packed:
            with tarfile.open(file, "w") as shard:
                for index in range(150 * number, 150 * (number + 1)):
                    add_member(shard, f"{index:03d}.png", encoded_image(index))
                    add_member(shard, f"{index:03d}.cls", str(index % 3).encode())
            packed[file.name] = file.read_bytes()
        file.write_bytes(packed[file.name])
    return home
