"""Parquet files as libraries write them: columns of any type, null values, files that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import DataError
from service.bulk.entries import Label, Position
from service.bulk.errors import BulkError
from service.bulk.sources import SourceOptions, open_source
from tests.service.bulk.data_sets import images, job, rows_of, run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()})
IMAGES = {
    "binary": pa.array([b"a", b"b"]),
    "large": pa.array([b"a", b"b"], pa.large_binary()),
    "view": pa.array([b"a", b"b"], pa.binary_view()),
    "dictionary": pa.array([b"a", b"b"]).dictionary_encode(),
    "struct": pa.array([{"bytes": b"a", "path": None}, {"bytes": b"b", "path": "x.jpg"}], STRUCT),
}
LABELS: dict[str, tuple[Any, list[Label]]] = {
    "int8": (pa.array([1, None], pa.int8()), [1, None]),
    "bool": (pa.array([True, False]), [1, 0]),
    "float": (pa.array([0.5, float("nan")]), ["0.5", None]),
    "string": (pa.array(["cat", None]), ["cat", None]),
    "string view": (pa.array(["cat", ""], pa.string_view()), ["cat", ""]),
    "dictionary": (pa.array(["cat", "dog"]).dictionary_encode(), ["cat", "dog"]),
    "binary": (pa.array([b"cat", b"\xff"]), ["cat", "\\xff"]),
    "list": (pa.array([[1, 2], []]), ["[1, 2]", "[]"]),
    "struct": (pa.array([{"a": 1}, None]), ['{"a": 1}', None]),
    "null": (pa.array([None, None]), [None, None]),
    "large": (pa.array([1, 1 << 63], pa.uint64()), [1, None]),
}


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def labels_of(path: Path, **options: Any) -> list[Label]:
    return [entry.label for _, entry in open_source(str(path), SourceOptions(**options)).entries(Position(0, 0))]


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_every_binary_type_are_read(kind: str, tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "x.parquet", picture=IMAGES[kind])))
    assert [entry.read() for _, entry in source.entries(Position(0, 0))] == [b"a", b"b"]
    assert [entry.read() for _, entry in source.entries(Position(0, 1))] == [b"b"]


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type_are_read(kind: str, tmp_path: Path) -> None:
    column, labels = LABELS[kind]
    path = write(tmp_path / "x.parquet", image=IMAGES["binary"], label=column)
    assert labels_of(path) == labels
    assert labels_of(path, with_labels=False) == [None, None]


@pytest.mark.parametrize("kind", ["list", "struct", "bool", "null", "string view"])
def test_labels_of_every_type_are_written(kind: str, tmp_path: Path) -> None:
    column, labels = LABELS[kind]
    path = write(tmp_path / "x.parquet", image=pa.array(images(2)), label=column)
    run(job(path, tmp_path / "rows", format="parquet"))
    written = pq.read_table(tmp_path / "rows" / "tokens-000000.parquet")
    assert (written["label"].to_pylist() if kind != "null" else [None, None]) == labels
    run(job(path, tmp_path / "lines"))
    assert [row["class_id"] for row in rows_of(tmp_path / "lines")] == labels


def test_columns_may_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=IMAGES["binary"], label=pa.array([1, 2]))
    write(tmp_path / "b.parquet", label=pa.array(["cat", None]), image=IMAGES["struct"], other=pa.array([1, 2]))
    write(tmp_path / "c.parquet", image=IMAGES["view"])
    assert labels_of(tmp_path) == ["1", "2", "cat", None, None, None]
    (tmp_path / "b.parquet").unlink()
    assert labels_of(tmp_path) == [1, 2, None, None]
    write(tmp_path / "metadata.parquet", name=pa.array(["x"]))
    with pytest.raises(BulkError, match=r"images of .*metadata.parquet \(none of name has a suitable type\)"):
        open_source(str(tmp_path))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=IMAGES["binary"])
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(BulkError, match=r"cannot read .*/b.parquet: "):
        open_source(str(tmp_path))


def test_different_class_names_are_refused(tmp_path: Path) -> None:
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": classes}}}}
        table = pa.table({"image": IMAGES["binary"], "label": [0, 1]})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / f"{name}.parquet"
        )
    with pytest.raises(BulkError, match=r"a.parquet and .*b.parquet have different class names"):
        open_source(str(tmp_path))


def test_keys_of_every_type_are_read(tmp_path: Path) -> None:
    for number, column in enumerate(([7, None], [b"a\xff", b"b"], ["x", "x"], [1.5, 2.5])):
        write(tmp_path / f"{number}.parquet", image=IMAGES["binary"], id=pa.array(column))
    keys = [
        entry.key for _, entry in open_source(str(tmp_path), SourceOptions(key_column="id")).entries(Position(0, 0))
    ]
    assert keys == ["0/7", "0-00000001", "1/a\\xff", "1/b", "2/x", "2/x~1", "3/1.5", "3/2.5"]


def test_rows_without_bytes_are_recorded_with_their_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", image=pa.array([{"bytes": None, "path": "a.jpg"}, None], STRUCT))
    assert run(job(path, tmp_path / "tokens")).broken == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "tokens" / "errors.jsonl").read_text().splitlines()]
    assert reasons == ["the row holds no image, only the path a.jpg", "the row holds no image"]


def test_a_source_without_rows_has_no_images(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(DataError, match="no images in"):
        run(job(path, tmp_path / "tokens"))
