import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import InMemoryDataset, class_names, load_dataset, open_dataset
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
    assert class_names(home) == ["cat", "dog"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert val.labels.tolist() == [1]
    assert np.array_equal(val.images[0], train.images[3])


def test_groups_of_classes_and_folders_within_a_class_are_told_apart(sort: Sort) -> None:
    sort("train/pets/cat", 1)
    sort("train/pets/cat/more/still", 1)
    sort("train/pets/dog", 1)
    home = sort("val/pets/cat/more", 2)
    assert load(home, "train").names == ("pets/cat", "pets/dog")
    assert load(home, "val").labels.tolist() == [0, 0]


def test_without_a_validation_folder_the_same_twentieth_is_held_out_every_time(sort: Sort) -> None:
    sort("cat", 200)
    home = sort("dog", 200)
    train, val = load(home, "train"), load(home, "val")
    assert len(train) + len(val) == 400
    assert 8 <= len(val) <= 36
    assert set(val.labels.tolist()) == {0, 1}
    again = load_dataset(home, "val", size=16, cache=home.parent / "another cache")
    assert np.array_equal(again.images, val.images)


def test_a_new_photograph_moves_no_other_one_to_the_other_split(sort: Sort) -> None:
    before = load(sort("cat", 100), "val")
    after = load(sort("cat", 120), "val")
    assert np.array_equal(after.images[: len(before)], before.images)


def test_a_train_folder_alone_gives_its_own_twentieth(sort: Sort) -> None:
    home = sort("train/cat", 100)
    assert load(home, "train").names == load(home, "val").names == ("cat",)


def test_a_validation_folder_alone_is_whole(sort: Sort) -> None:
    home = sort("val/cat", 5)
    assert len(load(home, "val")) == 5
    with pytest.raises(DataError, match="no photographs for train"):
        load(home, "train")


def test_classes_that_only_validation_has_are_named(sort: Sort) -> None:
    sort("train/cat", 1)
    sort("val/bird", 1)
    home = sort("val/cow", 1)
    with pytest.raises(DataError, match=r"val holds classes that train does not: bird, cow$"):
        load(home, "val")


def test_too_few_to_hold_any_out_is_said(sort: Sort) -> None:
    with pytest.raises(DataError, match=r"of the 2 in .* that leaves none for val: sort them into"):
        load(sort("cat", 2), "val")


def test_suffixes_may_be_capital_and_hidden_and_other_files_do_not_count(sort: Sort) -> None:
    sort("train/cat", 2)
    home = sort("val/cat", 1)
    (home / "train/cat/000.png").rename(home / "train/cat/000.JPEG")
    (home / "train/cat/._001.png").write_bytes(b"a system's notes")
    (home / "train/cat/notes.txt").write_text("notes")
    assert len(load(home, "train")) == 2


def test_photographs_outside_of_a_class_are_named_and_left_out(sort: Sort, caplog: pytest.LogCaptureFixture) -> None:
    sort("train/cat", 120)
    sort("train", 1)
    home = sort("val/cat", 1)
    assert len(load(home, "train")) == 120
    assert "left out 000.png: lies in" in caplog.text


@pytest.mark.parametrize("memory_limit_bytes", [None, 0], ids=["held", "streamed"])
def test_photographs_without_any_class_stop(sort: Sort, memory_limit_bytes: int | None) -> None:
    sort("train/cat", 20)
    home = sort("train", 2)
    sort("val/cat", 1)
    with pytest.raises(DataError, match=r"2 of 22 members can not be used; first: 000.png: lies in"):
        open_dataset(home, "train", size=16, cache=home.parent, memory_limit_bytes=memory_limit_bytes)


def test_a_new_class_gives_the_labels_of_an_unchanged_split_new_numbers(sort: Sort) -> None:
    sort("train/dog", 1)
    home = sort("val/dog", 1)
    assert load(home, "val").labels.tolist() == [0]
    sort("train/cat", 1)
    assert load(home, "val").labels.tolist() == [1]


def test_a_link_to_nothing_is_named(sort: Sort, caplog: pytest.LogCaptureFixture) -> None:
    sort("train/cat", 120)
    home = sort("val/cat", 1)
    (home / "train/cat/x.png").symlink_to(home / "nowhere.png")
    assert len(load(home, "train")) == 120
    assert "left out cat/x.png: " in caplog.text


def test_a_folder_with_nothing_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"0": "cat"}))
    with pytest.raises(DataError, match=r"no train-\*\.tar or .* and no folders of classes"):
        load_dataset(tmp_path, "train", size=16, cache=tmp_path)
