"""Shards and folders of tokens that other programs wrote, and damaged ones."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.token_folder import open_tokens
from models.data.token_shards import TokenShape
from models.errors import DataError

IDS = np.arange(24).reshape(6, 4)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **shape: int) -> list[tuple[str, int, Any, list[int]]]:
    return [
        (key, view, label, ids.tolist())
        for key, view, label, ids in open_tokens(path, shape=TokenShape(**shape)).rows()
    ]


def test_lines_of_the_authors_pretokenization(tmp_path: Path) -> None:
    lines(
        tmp_path / "pretokenized.jsonl", [{"class_id": row // 2, "tokens": ids} for row, ids in enumerate(IDS.tolist())]
    )
    expected = [(f"pretokenized-{row:08d}", 0, row // 2, ids) for row, ids in enumerate(IDS.tolist())]
    assert read(tmp_path / "pretokenized.jsonl") == read(tmp_path) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, ">i4"])
def test_an_array_of_samples_without_keys(dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", IDS.astype(dtype))
    assert read(tmp_path) == [(f"samples-{row:08d}", 0, None, ids) for row, ids in enumerate(IDS.tolist())]


def test_a_binary_file_needs_the_number_of_tokens(tmp_path: Path) -> None:
    IDS.astype("<u2").tofile(tmp_path / "samples.bin")
    assert [ids for *_, ids in read(tmp_path, num_tokens=4)] == IDS.tolist()
    assert [view for _, view, *_ in read(tmp_path, num_tokens=4, views=3)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match="give the number of tokens"):
        read(tmp_path)


def test_lists_of_any_type_in_parquet_and_rows_in_several_groups(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, kind in enumerate([pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32(), 4)]):
        table = pa.table({"tokens": pa.array(IDS.tolist(), kind), "other": ["x"] * 6, "label": list("abcabc")})
        pq.write_table(table, path := tmp_path / f"{number}.parquet", row_group_size=2)
        expected = [(f"{number}-{row:08d}", 0, "abcabc"[row], ids) for row, ids in enumerate(IDS.tolist())]
        assert read(path) == expected
        (shard,) = open_tokens(path).shards
        assert [[row.key for row in shard.rows(start)] for start in range(7)] == [
            [key for key, *_ in expected[start:]] for start in range(7)
        ]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def npy(array: Any) -> bytes:
    np.save(written := io.BytesIO(), array)
    return written.getvalue()


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "floats": (lambda at: np.save(at / "a.npy", IDS * 0.5), "a.npy: values of type float64, not token ids"),
    "negative": (lambda at: np.save(at / "a.npy", IDS - 1), "token ids from -1 to 22, not in 0 to 65535"),
    "too large": (lambda at: np.save(at / "a.npy", IDS + 41), "token id 64 is not in 0 to 63"),
    "flat": (lambda at: np.save(at / "a.npy", IDS[0]), r"shape \[4\], not \[images, K\]"),
    "other K": (lambda at: np.save(at / "a.npy", IDS[:, :3]), r"tokens of shape \[6, 3\], not \[crops, 4\]"),
    "cut npy": (lambda at: (at / "a.npy").write_bytes(npy(IDS)[:-9]), "a.npy: "),
    "pickle": (lambda at: np.save(at / "a.npy", np.array([None]), allow_pickle=True), "a.npy: "),
    "odd bin": (lambda at: (at / "a.bin").write_bytes(b"123456"), "a.bin: "),
    "ragged": (lambda at: lines(at / "a.jsonl", [{"tokens": [1]}, {"tokens": [1, 2]}]), "a.jsonl: "),
    "no tokens": (lambda at: lines(at / "a.jsonl", [{"class_id": 1}]), "a.jsonl: tokens is missing"),
    "no object": (lambda at: lines(at / "a.jsonl", [[1]]), "a.jsonl: "),  # type: ignore[list-item]
    "cut line": (lambda at: (at / "a.jsonl").write_text('{"tokens": [1'), "a.jsonl: "),
    "label": (lambda at: lines(at / "a.jsonl", [{"tokens": [1, 2, 3, 4], "class_id": [1]}]), "a label of type list"),
    "no npy": (lambda at: tar(at / "a.tar", {"x.cls": b"1"}), "a.tar: x.npy is missing"),
    "cut tar": (lambda at: (at / "a.tar").write_bytes(b"x" * 512), "a.tar: "),
    "no parquet": (lambda at: (at / "a.parquet").write_bytes(b"x" * 99), "a.parquet: "),
    "few keys": (
        lambda at: (np.save(at / "a.npy", IDS), lines(at / "a.keys.jsonl", [{"key": "x"}])),
        "a.npy: fewer lines in a.keys.jsonl than images",
    ),
    "many keys": (
        lambda at: (np.save(at / "a.npy", IDS), lines(at / "a.keys.jsonl", [{"key": "x"}] * 7)),
        "a.npy: more lines in a.keys.jsonl than images",
    ),
    "nothing": (Path.touch, "no files ending in .parquet, .tar, .npy, .bin, .jsonl at"),
    "two formats": (
        lambda at: (np.save(at / "a.npy", IDS), lines(at / "a.jsonl", [])),
        "there are npy and jsonl at .*: expected tokens in one format",
    ),
    "unfinished": (lambda at: lines(at / "journal.jsonl", []), "is not finished"),
    "no manifest": (lambda at: (at / "manifest.json").write_text("{}"), "is not the manifest of tokens"),
    "later manifest": (lambda at: (at / "manifest.json").write_text('{"version": 99}'), "has version 99"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    write, message = DEFECTS[name]
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        read(tmp_path, num_tokens=4, codebook_size=64)
