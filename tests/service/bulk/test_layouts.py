"""Layouts of datasets: which images are read for each ``--split``, and what is refused. The documentation has this table."""

from __future__ import annotations

import gzip
import io
import tarfile
from functools import cache
from pathlib import Path

import fsspec
import pytest

from models.errors import DataError
from service.bulk.entries import Position
from service.bulk.sources import SourceOptions, open_source
from tests.service.bulk.data_sets import add_member, images

pytest.importorskip("pyarrow")

# Files with one image each, and the number of images for no --split, train, val and test; "-": refused.
LAYOUTS = {
    "train-00000-of-00002-0a1b.parquet train-00001-of-00002-0a1b.parquet test-00000-of-00001-2c3d.parquet": "- 2 - 1",
    "default/train/0000.parquet default/train/0001.parquet default/validation/0000.parquet": "- 2 1 -",
    "train/part-0.parquet train/part-1.parquet test/part-0.parquet": "- 2 - 1",
    "train.parquet valid.parquet test.parquet": "- 1 1 1",
    "data/train_0.parquet data/train_1.parquet data/dev_0.parquet": "- 2 1 -",
    "default/partial-train/0000.parquet default/test/0000.parquet": "- 1 - 1",
    "split=train/0.parquet split=eval/0.parquet": "- 1 - 1",
    "train_sft-00000-of-00001.parquet train_gen-00000-of-00001.parquet test_sft-00000-of-00001.parquet": "- - - 1",
    "de/train/0000.parquet fr/train/0000.parquet": "- - - -",
    "train-0.parquet extra-0.parquet": "- 1 - -",
    "part-0.parquet part-1.parquet": "2 - - -",
    "train-0.parquet train-1.parquet": "2 2 - -",
    "train-000.tar train-001.tar val-000.tar": "- 2 1 -",
    "TRAIN-000.TAR Validation_000.tar.gz": "- 1 1 -",
    "imagenet-train-000000.tar.zst imagenet-test-000000.tgz": "- 1 - 1",
    "trainset.tar testset.tar": "- 1 - 1",
    "train_test.tar val.tar": "- - 1 -",
    "a/0000.tar b/0000.tar": "2 - - -",
    "train/cat/1.jpg train/dog/2.jpg val/cat/3.jpg": "- 2 1 -",
    "Train/1.jpg Train/2.jpg TEST/3.jpg": "- 2 - 1",
    "train2017/1.jpg val2017/2.jpg unlabeled2017/3.jpg": "- 1 1 -",
    "bottle/train/good/1.jpg bottle/test/broken/2.jpg": "- 1 - 1",
    "1.jpg 2.jpg test/3.jpg": "- - - 1",
    "cat/1.jpg dog/2.jpg test/cat/3.jpg": "- - - 1",
    "cat/1.jpg dog/2.jpg test/3.jpg": "3 - - -",
    "animals/train/1.jpg animals/bus/2.jpg things/car/3.jpg": "3 - - -",
    "train/cat/1.jpg train/dog/2.jpg train/test/3.jpg": "3 3 - -",
}
SPLITS = (None, "train", "val", "test")
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "bulk.md"


@cache
def content(suffix: str) -> bytes:
    """A file with one image."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    picture, written = images(1)[0], io.BytesIO()
    if suffix == "jpg":
        return picture
    if suffix == "parquet":
        pq.write_table(pa.table({"image": [picture]}), written)
        return written.getvalue()
    with tarfile.open(fileobj=written, mode="w") as archive:
        add_member(archive, "000000.jpg", picture)
        add_member(archive, "000000.cls", b"1")
    compress = {"gz": gzip.compress, "tgz": gzip.compress, "zst": zstandard.compress}.get(suffix, bytes)
    return compress(written.getvalue())


def layout_of(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name.rpartition(".")[2].lower()))
    return folder


def keys_of(name: str, **options: str) -> list[str]:
    source = open_source(name, SourceOptions(**options))  # type: ignore[arg-type]
    entries = [entry for _, entry in source.entries(Position(0, 0))]
    assert all(entry.read() == content("jpg") for entry in entries)
    return [entry.key for entry in entries]


def count(name: str, split: str | None) -> str:
    try:
        return str(len(keys_of(name, **({} if split is None else {"split": split}))))
    except DataError:
        return "-"


@pytest.mark.parametrize("names", LAYOUTS)
def test_one_split_is_read_or_the_source_is_refused(names: str, tmp_path: Path) -> None:
    source = layout_of(tmp_path / "testing", names)
    assert " ".join(count(str(source), split) for split in SPLITS) == LAYOUTS[names]
    assert len(keys_of(str(source), split="all")) == len(names.split())


def test_the_documentation_has_the_table_of_layouts() -> None:
    rows = [[f"`{names.replace(' ', '`, `')}`", *row.replace("-", "refused").split()] for names, row in LAYOUTS.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)
    assert table in DOCUMENTATION.read_text(encoding="utf-8")


def test_a_refusal_lists_the_splits_and_the_configurations(tmp_path: Path) -> None:
    source = layout_of(tmp_path, "de/train/0.parquet de/test/0.parquet fr/train/0.parquet fr/train/1.parquet")
    with pytest.raises(
        DataError, match=r"several splits: test \(1\), train \(3\); choose one with --split, or --split all"
    ):
        keys_of(str(source))
    with pytest.raises(DataError, match=r"no splits dev; it has test \(1\), train \(3\)"):
        keys_of(str(source), split="dev")
    with pytest.raises(DataError, match="several configurations: de, fr; name the folder of one"):
        keys_of(str(source), split="train")
    assert len(keys_of(f"{source}/fr", split="train")) == len(keys_of(f"{source}/fr")) == 2
    assert len(keys_of(f"{source}/*/train/*.parquet")) == 3


def test_patterns_and_ranges_are_held_to_the_same_rule(tmp_path: Path) -> None:
    source = layout_of(tmp_path / "test", "train-00.tar train-01.tar val-00.tar")
    for pattern in ("*.tar", "{train,val}-0*.tar", "*-0[01].tar", "*"):
        with pytest.raises(DataError, match=r"several splits: train \(2\), val \(1\)"):
            keys_of(f"{source}/{pattern}")
        assert all(key.startswith("train") for key in keys_of(f"{source}/{pattern}", split="train"))
    assert keys_of(f"{source}/train-{{00..01}}.tar") == ["train-00/000000", "train-01/000000"]
    assert keys_of(f"{source}/val-00.tar") == ["000000"]
    with pytest.raises(DataError, match=r"train \(1\), val \(1\)"):
        keys_of(f"{source}/{{train,val}}-{{00..00}}.tar")


def test_a_url_is_held_to_the_same_rule(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("train-0.tar", "test-0.tar"):
        memory.pipe_file(f"/layouts/{name}", content("tar"))
    with pytest.raises(DataError, match=r"test \(1\), train \(1\)"):
        keys_of("memory://layouts")
    assert keys_of("memory://layouts/*.tar", split="test") == ["000000"]


def test_brackets_and_braces_in_names_of_folders_are_no_pattern(tmp_path: Path) -> None:
    layout_of(tmp_path / "photos[1]", "a.jpg")
    layout_of(tmp_path / "photos1", "b.jpg")
    layout_of(tmp_path / "x{0..1}" / "[y]", "0.tar 1.tar")
    assert keys_of(f"{tmp_path}/photos[1]") == keys_of(f"{tmp_path}/photos[1]/") == ["a"]
    assert len(keys_of(f"{tmp_path}/x{{0..1}}/[y]/*.tar")) == 2
    assert len(keys_of(f"{tmp_path}/x{{0..1}}/[y]/{{0..1}}.tar")) == 2
    assert len(keys_of(f"{tmp_path}/x{{0..1}}/[[]y]/*.tar")) == 2


def test_hidden_files_are_not_read(tmp_path: Path) -> None:
    layout_of(tmp_path, "cat/1.jpg cat/._1.jpg .cache/2.jpg __MACOSX/cat/1.jpg")
    assert keys_of(str(tmp_path)) == ["cat/1"]
    layout_of(tmp_path / "tars", "0.tar ._0.tar .x/1.tar")
    assert keys_of(f"{tmp_path}/tars/*.tar") == keys_of(f"{tmp_path}/tars") == ["000000"]


def test_files_that_name_no_split_can_be_chosen(tmp_path: Path) -> None:
    assert keys_of(str(layout_of(tmp_path, "1.jpg 2.jpg test/3.jpg")), split="none") == ["1", "2"]
    source = layout_of(tmp_path / "x", "train-00000-of-00001.parquet extra-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"no splits none; it has extra \(1\), train \(1\)"):
        keys_of(str(source), split="none")


def test_labels_of_a_split_are_those_of_its_folders(tmp_path: Path) -> None:
    source = layout_of(tmp_path, "train/cat/1.jpg train/dog/2.jpg val/dog/3.jpg cow/train/1.jpg")
    opened = open_source(str(source), SourceOptions(split="train"))
    assert opened.classes == ("cat", "cow", "dog")
    assert [(entry.key, entry.label) for _, entry in opened.entries(Position(0, 0))] == [
        ("cow/train/1", 1),
        ("train/cat/1", 0),
        ("train/dog/2", 2),
    ]
    everything = open_source(str(layout_of(source, "train/4.jpg")), SourceOptions(split="all"))
    assert everything.classes == ("cat", "cow", "dog", "train")
    without = open_source(str(source), SourceOptions(split="train", with_labels=False))
    assert (without.labels, without.classes) == (None, None)
