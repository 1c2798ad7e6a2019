"""Keys are unique in the output and relative paths, whatever the source has; and do not depend on where reading began."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from service.bulk.entries import Position
from service.bulk.keys import FileKeys, UniqueKeys, keys_of_files
from service.bulk.sources import open_source
from tests.service.bulk.data_sets import add_member, images, job, rows_of, run

START = Position(0, 0)
NAMES = ["a.jpg", "a.cls", "b.jpg", "a.jpg", "../up.jpg", "/abs.jpg", "x//./y.jpg", "b.jpg", "%2E.jpg", "new\nline.jpg"]


def tar_of(path: Path, names: list[str], picture: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            add_member(archive, name, b"1" if name.endswith("cls") else picture)


def keys_of(source: Path, start: Position = START) -> list[str]:
    return [entry.key for _, entry in open_source(str(source)).entries(start)]


def webdataset_keys(folder: Path) -> list[str]:
    """The keys that WebDataset reads, which raises an error for duplicates."""
    tariterators = pytest.importorskip("webdataset.tariterators")
    found = []
    for path in sorted(folder.glob("tokens-*.tar")):
        with path.open("rb") as stream:
            members = tariterators.tar_file_expander([{"url": path.name, "stream": stream}])
            found += [sample["__key__"] for sample in tariterators.group_by_keys(members)]
    return found


def test_equal_keys_of_archives_and_in_an_archive_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("0.tar", "1.tar"):
        tar_of(tmp_path / "source" / name, NAMES, images(1)[0])
    result = run(job(tmp_path / "source", tmp_path / "tokens", format="webdataset", shard_images=100))
    read = webdataset_keys(tmp_path / "tokens")
    one = ["a", "b", "a~2", "abs", "x/y", "b~6", "%2E", "new\\x0aline"]
    keys = [f"{number}/{key}" for number in range(2) for key in one]
    assert read == [key.replace("%", "%25") for key in keys]
    assert (result.images, result.broken) == (16, 2)
    run(job(tmp_path / "source", tmp_path / "lines", shard_images=100))
    assert [row["key"] for row in rows_of(tmp_path / "lines")] == keys
    errors = [json.loads(line) for line in (tmp_path / "lines" / "errors.jsonl").read_text().splitlines()]
    assert errors[0] == {"key": "0-00000003", "reason": "its key has the part '..': '../up'"}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_keys_do_not_depend_on_where_reading_began(kind: str, tmp_path: Path) -> None:
    keys = ["a", "b", "a", None, "", "/", "a~2", "..", "c", "b", *map(str, range(5)), "c"]
    if kind == "tar":
        tar_of(tmp_path / "x.tar", [f"{key}.jpg" for key in keys if key and key != "/"], b"")
        tar_of(tmp_path / "y.tar", [f"{key}.jpg" for key in keys if key and key != "/"], b"")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"image": [b""] * len(keys), "key": keys})
        for name in ("x.parquet", "y.parquet"):
            pq.write_table(table, tmp_path / name, row_group_size=3)
    source = open_source(str(tmp_path))
    whole = list(source.entries(START))
    found = [entry.key for _, entry in whole]
    assert len(set(found)) == len(found)
    for number, (position, _) in enumerate(whole, 1):
        assert [entry.key for _, entry in source.entries(position)] == found[number:]


def test_equal_paths_in_parquet_are_told_apart(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    paths = ["image.jpg", "image.jpg", "/home/image.jpg", "", None]
    table = pa.table({"image": pa.array([{"bytes": b"x", "path": path} for path in paths], kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    one = ["image", "image~1", "home/image", "a-00000003", "a-00000004"]
    assert keys_of(tmp_path) == one
    assert keys_of(tmp_path, Position(0, 3)) == one[3:]
    pq.write_table(table, tmp_path / "b.parquet")
    assert keys_of(tmp_path)[:5] == [f"a/{key}" if "-" not in key else key for key in one]
    assert len(set(keys_of(tmp_path))) == 10


def test_names_of_files_in_a_folder_that_differ_in_suffixes_stay_unique(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(keys_of(tmp_path)) == ["a.jpg", "a.jpg~1", "a.png", "b"]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["x.tar"], ["k"]),
        (["x.tar", "y.tar"], ["x/k", "y/k"]),
        (["a/0.tar", "b/0.tar"], ["a-0/k", "b-0/k"]),
        (["a-0.tar", "a/0.tar", "b/0.tar"], ["a-0.tar/k", "a%2F0.tar/k", "b%2F0.tar/k"]),
        (["x.tar", "x.tar.gz"], ["x.tar/k", "x.tar.gz/k"]),
    ],
)
def test_a_key_begins_with_the_name_of_one_of_several_files(names: list[str], keys: list[str]) -> None:
    assert [file.of("k") for file in keys_of_files(names, (".tar", ".tar.gz"))] == keys


def test_a_key_that_begins_with_its_files_name_is_left_as_it_is() -> None:
    first, second = keys_of_files(["00000.tar", "00001.tar"], (".tar",))
    assert (first.of("000000007"), second.of("000010007"), second.of("000000007")) == (
        "000000007",
        "000010007",
        "00001/000000007",
    )
    short, long = keys_of_files(["1.tar", "10.tar"], (".tar",))
    assert (short.of("100"), long.of("100")) == ("1/100", "10/100")


def test_long_keys_are_shortened_and_stay_different() -> None:
    unique = UniqueKeys(FileKeys("x"))
    long = "é" * 300
    made: list[Any] = [unique(long + end, number) for number, end in enumerate(("a", "b"))]
    made += [unique("/".join([str(number), *["part" * 20] * 20]), number) for number in range(2)]
    assert len(set(made)) == 4
    assert all(len(key.encode()) <= 1000 and max(map(len, key.encode().split(b"/"))) <= 240 for key in made)


def test_no_key_of_many_gets_a_number_without_need() -> None:
    unique = UniqueKeys(FileKeys("x"))
    assert all(unique(str(number), number) == str(number) for number in range(20_000))
