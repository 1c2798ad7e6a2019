"""Splits in the names of files and folders, and the layouts that training reads; ``titok tokenize`` has the same rules."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from models.data.datasets import has_training_images, load_dataset
from models.data.splits import FileSplit, split_of_file, split_of_name, splits_of_images
from models.errors import DataError

AddMember = Callable[[tarfile.TarFile, str, bytes], None]
Sort = Callable[[str, int], Path]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train Train TRAIN training trainset train2017 train_0 partial-train ImagesTrain train-data.x", "train"),
        ("val valid validation Validation dev VAL2017 val.set devset", "val"),
        ("test testing TEST eval evaluation test_00001 my-testset", "test"),
        ("train_test trainTest", "train-test"),
        ("strain trainer latest contest medieval device value tests validity 0 part-0 cat", None),
    ],
)
def test_words_name_splits(names: str, split: str | None) -> None:
    assert {split_of_name(name) for name in names.split()} == {split}


@pytest.mark.parametrize(
    ("path", "split", "configuration"),
    [
        ("de/train/0000.parquet", "train", "de"),
        ("test/train-0.tar", "train", "test"),
        ("train_sft-00000-of-00002-a1.parquet", "train_sft", ""),
        ("data/extra-00000-of-00002.parquet", "extra", "data"),
        ("train/extra-00000-of-00002.parquet", "train", ""),
        ("a/0.tar", None, "a"),
    ],
)
def test_the_innermost_name_of_a_file_counts(path: str, split: str | None, configuration: str) -> None:
    assert split_of_file(path) == FileSplit(split, configuration)


def test_a_class_of_many_may_be_called_as_a_split() -> None:
    classes = [f"class{number}/1.jpg" for number in range(8)]
    assert {one.split for one in splits_of_images([*classes, "test/1.jpg", "train/1.jpg"]).values()} == {None}
    nested = [f"train/{path}" for path in classes] + ["train/train/1.jpg", "val/test/1.jpg"]
    found = [tuple(one) for one in splits_of_images(nested).values()]
    assert found[-2:] == [("train", "train/1.jpg"), ("val", "test/1.jpg")]


def test_folders_of_the_same_split_within_each_other_are_one() -> None:
    found = splits_of_images(
        ["seg_train/seg_train/sea/1.jpg", "seg_test/seg_test/sea/2.jpg", "seg_pred/seg_pred/3.jpg"]
    )
    assert [tuple(one) for one in found.values()] == [
        ("train", "sea/1.jpg"),
        ("test", "sea/2.jpg"),
        (None, "seg_pred/seg_pred/3.jpg"),
    ]


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train", "valid"), ("train2017", "val2017"), ("a/training", "a/dev"), ("TRAINSET", "Validation")],
)
def test_class_folders_of_a_split_are_read_alone(train: str, val: str, sort: Sort) -> None:
    sort(f"{train}/cat", 3)
    sort(f"{val}/cat", 2)
    home = sort("test/cat", 4)
    lengths = [len(load_dataset(home, split, size=16, cache=home.parent / "cache")) for split in ("train", "val")]
    assert lengths == [3, 2]
    assert load_dataset(home, "val", size=16, cache=home.parent / "cache").names in (("cat",), ("a/cat",))
    assert has_training_images(home)


def test_validation_images_are_held_out_of_train_and_not_of_test(sort: Sort) -> None:
    sort("train/cat", 100)
    home = sort("test/cat", 100)
    lengths = [len(load_dataset(home, split, size=16, cache=home.parent / "cache")) for split in ("train", "val")]
    assert sum(lengths) == 100


@pytest.mark.parametrize("folders", [("test/cat",), ("test/cat", "cat"), ("val/cat", "cat", "dog")])
def test_without_a_split_for_training_the_splits_are_listed(folders: tuple[str, ...], sort: Sort) -> None:
    for folder in folders:
        home = sort(folder, 2)
    with pytest.raises(DataError, match=r"has the splits .*(test|val) \(2\): expected train and val, or train alone"):
        load_dataset(home, "train", size=16, cache=home.parent / "cache")


@pytest.mark.parametrize(
    "layout",
    [
        ("train/0000.tar", "val/0000.tar"),
        ("Train_0.TAR", "validation-0.tar"),
        ("data/set-train-00000-of-00001.tar.zst", "data/set-dev-00000-of-00001.tzst"),
    ],
)
def test_archives_of_a_split_are_read_alone(layout: tuple[str, str], plain_shards: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number, name in enumerate((*layout, "test-0.tar")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        source = plain_shards / f"train-{number % 2}.tar"
        shutil.copy(source, home / name)
        if name.endswith("zst"):
            (home / name).write_bytes(zstandard.compress(source.read_bytes()))
    train, val = (load_dataset(home, split, size=16, cache=tmp_path / "cache") for split in ("train", "val"))
    assert (len(train), len(val)) == (150, 150)
    assert (train.images != val.images).any()


def test_links_and_files_apart_are_read_from_archives(
    add_member: AddMember, encoded_image: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train-0.tar", "w") as archive:
        for number in range(5):
            add_member(archive, f"{number}.png", encoded_image(number))
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
        for number in range(6):
            add_member(archive, f"{number}.cls", str(number).encode())
    dataset = load_dataset(tmp_path / "data", "train", size=16, cache=tmp_path / "cache")
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert (dataset.images[0] == dataset.images[5]).all()
