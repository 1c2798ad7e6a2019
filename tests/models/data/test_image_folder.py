import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import InMemoryDataset, load_dataset, open_dataset
from models.errors import DataError

Sort = Callable[[str, int], Path]


def load(folder: Path, split: str) -> InMemoryDataset:
    return load_dataset(folder, split, size=16, cache=folder.parent / "cache")  # type: ignore[arg-type]


def test_classes_are_the_sorted_names_of_the_folders(sort: Sort) -> None:
    sort("train/dog", 2)
    sort("train/cat", 3)
    home = sort("val/dog", 1)
    train, val = load(home, "train"), load(home, "val")
    assert train.names == val.names == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert val.labels.tolist() == [1]
    assert np.array_equal(val.images[0], train.images[3])


def test_class_groups_and_subfolders_of_a_class_differ(sort: Sort) -> None:
    sort("train/pets/cat", 1)
    sort("train/pets/cat/more/still", 1)
    sort("train/pets/dog", 1)
    home = sort("val/pets/cat/more", 2)
    assert load(home, "train").names == ("pets/cat", "pets/dog")
    assert load(home, "val").labels.tolist() == [0, 0]


def test_without_a_validation_folder_the_same_twentieth_is_always_held_out(sort: Sort) -> None:
    sort("cat", 200)
    home = sort("dog", 200)
    train, val = load(home, "train"), load(home, "val")
    assert len(train) + len(val) == 400
    assert 8 <= len(val) <= 36
    assert set(val.labels.tolist()) == {0, 1}
    again = load_dataset(home, "val", size=16, cache=home.parent / "another cache")
    assert np.array_equal(again.images, val.images)


def test_a_new_image_does_not_change_the_split_of_the_others(sort: Sort) -> None:
    before = load(sort("cat", 100), "val")
    after = load(sort("cat", 120), "val")
    assert np.array_equal(after.images[: len(before)], before.images)


def test_with_only_a_train_folder_a_twentieth_of_it_is_held_out(sort: Sort) -> None:
    home = sort("train/cat", 100)
    assert load(home, "train").names == load(home, "val").names == ("cat",)


def test_with_only_a_validation_folder_train_is_empty(sort: Sort) -> None:
    home = sort("val/cat", 5)
    assert len(load(home, "val")) == 5
    with pytest.raises(DataError, match="no images for train"):
        load(home, "train")


def test_classes_missing_from_train_are_an_error(sort: Sort) -> None:
    sort("train/cat", 1)
    sort("val/bird", 1)
    home = sort("val/cow", 1)
    with pytest.raises(DataError, match=r"the val split of .* has classes that train lacks: bird, cow$"):
        load(home, "val")


def test_too_few_images_to_hold_any_out_is_an_error(sort: Sort) -> None:
    with pytest.raises(DataError, match=r"with the 2 in .* none is left for val: sort them into"):
        load(sort("cat", 2), "val")


def test_suffixes_ignore_case_and_hidden_files_are_skipped(sort: Sort) -> None:
    sort("train/cat", 2)
    home = sort("val/cat", 1)
    (home / "train/cat/000.png").rename(home / "train/cat/000.JPEG")
    (home / "train/cat/._001.png").write_bytes(b"a system's notes")
    (home / "train/cat/notes.txt").write_text("notes")
    assert len(load(home, "train")) == 2


def test_images_outside_class_folders_are_logged_and_skipped(sort: Sort, caplog: pytest.LogCaptureFixture) -> None:
    sort("train/cat", 120)
    sort("train", 1)
    home = sort("val/cat", 1)
    assert len(load(home, "train")) == 120
    assert "skipped 000.png: is in" in caplog.text


@pytest.mark.parametrize("memory_limit_bytes", [None, 0], ids=["held", "streamed"])
def test_too_many_images_outside_class_folders_are_an_error(sort: Sort, memory_limit_bytes: int | None) -> None:
    sort("train/cat", 20)
    home = sort("train", 2)
    sort("val/cat", 1)
    with pytest.raises(DataError, match=r"2 of 22 samples cannot be used; first: 000.png: is in"):
        open_dataset(home, "train", size=16, cache=home.parent, memory_limit_bytes=memory_limit_bytes)


def test_a_new_class_renumbers_the_labels_of_an_unchanged_split(sort: Sort) -> None:
    sort("train/dog", 1)
    home = sort("val/dog", 1)
    assert load(home, "val").labels.tolist() == [0]
    sort("train/cat", 1)
    assert load(home, "val").labels.tolist() == [1]


def test_a_broken_link_is_logged(sort: Sort, caplog: pytest.LogCaptureFixture) -> None:
    sort("train/cat", 120)
    home = sort("val/cat", 1)
    (home / "train/cat/x.png").symlink_to(home / "nowhere.png")
    assert len(load(home, "train")) == 120
    assert "skipped cat/x.png: " in caplog.text


def test_a_flat_folder_has_one_class(sort: Sort) -> None:
    sort("train", 3)
    home = sort("val", 2)
    train, val = load(home, "train"), load(home, "val")
    assert train.names == val.names == ("all",)
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 0], [0, 0])


def test_of_a_flat_folder_a_twentieth_is_held_out(sort: Sort) -> None:
    home = sort(".", 100)
    train, val = load(home, "train"), load(home, "val")
    assert len(train) + len(val) == 100
    assert len(val) > 0


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"0": "cat"}))
    with pytest.raises(DataError, match="no images in"):
        load_dataset(tmp_path, "train", size=16, cache=tmp_path)
