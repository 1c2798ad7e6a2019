"""Every kind of source yields the same images, keys and labels."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.errors import DataError
from models.preprocess import adm_crop, eval_crop
from service.bulk.crops import Crops
from service.bulk.entries import Position
from service.bulk.errors import BulkError
from service.bulk.sources import SourceOptions, open_source
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits
from tests.service.bulk.data_sets import (
    CLASSES,
    COUNT,
    add_member,
    folder_of,
    images,
    job,
    label_of,
    parquet_of,
    rows_of,
    run,
    tars_of,
)
from tests.tiny_models import tiny_tokenizer

MAKERS: dict[str, Callable[[Path], str]] = {
    "folder": lambda folder: str(folder_of(folder, images())),
    "folder URL": lambda folder: f"file://{folder_of(folder, images())}",
    "tars": lambda folder: str(tars_of(folder, images())),
    "compressed tars": lambda folder: f"{tars_of(folder, images(), suffix='.tar.gz')}/*.tar.gz",
    "range of tars": lambda folder: f"{tars_of(folder, images())}/set-{{000..002}}.tar",
    "Hugging Face folder": lambda folder: str(parquet_of(folder, list(images()))),
    "Parquet files": lambda folder: f"{parquet_of(folder, list(images()))}/data/train-*.parquet",
}


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The rows of each image encoded alone."""
    tokenizer = tiny_tokenizer()
    rows = []
    for number, data in enumerate(images()):
        pixels = eval_crop(decode_image(data, limits=MediaLimits()).image, tokenizer.image_size)
        tokens = tokenizer.encode(pixels[None])[0].tolist()
        key = f"{CLASSES[label_of(number)]}/{number:04d}"
        rows.append({"key": key, "view": 0, "class_id": label_of(number), "tokens": tokens})
    return rows


@pytest.mark.parametrize("kind", MAKERS)
def test_every_source_yields_the_ids_keys_and_labels_of_its_images(
    kind: str, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    if "Parquet" in kind or "Hugging" in kind:
        pytest.importorskip("pyarrow")
    source = MAKERS[kind](tmp_path / "source")
    result = run(job(source, tmp_path / "tokens", batch_size=7))
    assert (result.images, result.broken, result.shards) == (COUNT, 0, 5)
    name = "set-{:03d}/" if "tars" in kind else "" if kind in ("folder", "folder URL") else "train-{:05d}-of-00003/"
    prefixes = [name.format(number // 9) for number in range(COUNT)]
    rows = [row | {"key": prefix + row["key"]} for prefix, row in zip(prefixes, expected, strict=True)]
    assert rows_of(tmp_path / "tokens") == rows
    named = json.loads((tmp_path / "tokens" / "manifest.json").read_text())["source"]["classes"]
    assert named == (None if "tars" in kind else list(CLASSES))


@pytest.mark.parametrize("kind", MAKERS)
def test_reading_can_start_at_any_position(kind: str, tmp_path: Path) -> None:
    if "Parquet" in kind or "Hugging" in kind:
        pytest.importorskip("pyarrow")
    source = open_source(MAKERS[kind](tmp_path / "source"))
    whole = list(source.entries(Position(0, 0)))
    for begun, (position, _) in enumerate(whole, 1):
        rest = list(source.entries(position))
        assert [(place, entry.key, entry.label) for place, entry in rest] == [
            (place, entry.key, entry.label) for place, entry in whole[begun:]
        ]
        assert [entry.read() for _, entry in rest[:1]] == [entry.read() for _, entry in whole[begun : begun + 1]]
    assert sum(part.count() for part in source.parts) == COUNT


def test_images_in_the_top_folder_have_no_label_and_equal_names_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("one.jpg", "one.png", "two.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [(entry.key, entry.label) for _, entry in open_source(str(tmp_path)).entries(Position(0, 0))]
    assert found == [("one.jpg", None), ("one.png", None), ("two", None)]


def test_parquet_text_labels_are_kept_and_columns_can_be_named(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"picture": images(3), "thumbnail": images(3), "species": ["ant", "bee", None], "id": [7, 8, 9]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    with pytest.raises(BulkError, match=r"picture, thumbnail.*--image-column"):
        open_source(str(tmp_path))
    options = SourceOptions(image_column="picture", label_column="species", key_column="id")
    source = open_source(str(tmp_path / "all.parquet"), options)
    run(job(source, tmp_path / "tokens"))
    assert [(row["key"], row["class_id"]) for row in rows_of(tmp_path / "tokens")] == [
        ("7", "ant"),
        ("8", "bee"),
        ("9", None),
    ]


def test_broken_images_are_recorded_and_the_others_unaffected(expected: list[dict[str, Any]], tmp_path: Path) -> None:
    files = images()
    files[3], files[11], files[22] = b"", files[11][:200], b"GIF89a no more"
    folder_of(tmp_path / "source", files)
    result = run(job(tmp_path / "source", tmp_path / "tokens"))
    assert (result.images, result.broken) == (COUNT - 3, 3)
    errors = [json.loads(line) for line in (tmp_path / "tokens" / "errors.jsonl").read_text().splitlines()]
    assert [error["key"] for error in errors] == ["ant/0003", "bee/0011", "cat/0022"]
    assert errors[0]["reason"].startswith("The image is empty")
    assert rows_of(tmp_path / "tokens") == [row for row in expected if row["key"][-4:] not in ("0003", "0011", "0022")]
    counts = json.loads((tmp_path / "tokens" / "manifest.json").read_text())["counts"]
    assert counts == {"entries": COUNT, "images": 20, "broken": 3, "rows": 20, "tokens": 20 * 16}


def test_deleted_files_and_rows_without_an_image_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = open_source(str(folder_of(tmp_path / "source", images(3))))
    (tmp_path / "source" / "ant" / "0001.jpg").unlink()
    assert run(job(source, tmp_path / "a")).broken == 1
    assert "No such file" in (tmp_path / "a" / "errors.jsonl").read_text()
    parquet_of(tmp_path / "rows", [None, *images(2)])
    assert run(job(tmp_path / "rows", tmp_path / "b")).broken == 1
    assert "holds no image" in (tmp_path / "b" / "errors.jsonl").read_text()


def test_malformed_webdataset_samples_are_recorded(tmp_path: Path) -> None:
    data = images(1)[0]
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        for name, content in {
            "good.jpg": data,
            "class.jpg": data,
            "class.cls": b"\xff",
            "none.txt": b"text",
            "two.jpg": data,
            "two.png": data,
            "__MACOSX/._good.jpg": b"",
        }.items():
            add_member(archive, name, content)
    result = run(job(tmp_path / "odd.tar", tmp_path / "tokens"))
    assert (result.images, result.broken) == (1, 3)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "tokens" / "errors.jsonl").read_text().splitlines()]
    assert ["class is no text" in reasons[0], "0 images" in reasons[1], "2 images" in reasons[2]] == [True] * 3


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "compressed and cut off"])
def test_a_damaged_archive_yields_the_samples_before_the_damage_and_is_recorded(damage: str, tmp_path: Path) -> None:
    suffix = ".tar.gz" if "compressed" in damage else ".tar"
    tars_of(tmp_path / "source", images(9), suffix=suffix)
    path = tmp_path / "source" / f"set-000{suffix}"
    whole = path.read_bytes()
    if damage == "overwritten":
        with tarfile.open(path) as archive:
            place = archive.getmember("ant/0004.jpg").offset
        path.write_bytes(whole[:place] + b"x" * 512 + whole[place + 512 :])
    else:
        path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "source" / f"set-001{suffix}").write_bytes(whole)
    result = run(job(tmp_path / "source", tmp_path / "tokens"))
    lines = (tmp_path / "tokens" / "errors.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["key"] == str(path)
    assert "the archive ends here" in lines[-1]
    assert 9 < result.images < 18


def test_ten_crops_are_in_the_order_of_the_published_protocol(tmp_path: Path) -> None:
    files = images(4)
    folder_of(tmp_path / "source", files)
    for name, crops, count in (("ten", {"mode": "ten"}, 10), ("flip", {"flip": True}, 2)):
        run(job(tmp_path / "source", tmp_path / name, crops=Crops(**crops), batch_size=25))  # type: ignore[arg-type]
        rows = rows_of(tmp_path / name)
        assert [row["view"] for row in rows] == list(range(count)) * 4
    tokenizer, size = tiny_tokenizer(), 32
    for number, data in enumerate(files):
        picture = decode_image(data, limits=MediaLimits()).image
        ten = [row["tokens"] for row in rows_of(tmp_path / "ten")[number * 10 : number * 10 + 10]]
        assert ten == [tokenizer.encode(crop[None])[0].tolist() for crop in _published(picture, size)]
        centre = eval_crop(picture, size)
        two = [row["tokens"] for row in rows_of(tmp_path / "flip")[number * 2 : number * 2 + 2]]
        mirrored = np.ascontiguousarray(centre[:, ::-1])
        assert two == [tokenizer.encode(crop[None])[0].tolist() for crop in (centre, mirrored)]


def _published(picture: Any, size: int) -> list[np.ndarray]:
    """The published protocol, written out with Pillow's crop and mirror."""
    large = Image.fromarray(adm_crop(picture, int(size * 1.1)))
    far, middle = large.width - size, round((large.width - size) / 2)
    crops = []
    for view in (large, ImageOps.mirror(large)):
        for left, top in ((0, 0), (far, 0), (0, far), (far, far), (middle, middle)):
            crops.append(np.array(view.crop((left, top, left + size, top + size))))
    return crops


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no images in"),
        (lambda folder: (folder / "notes.txt").write_text("no image"), "no images in"),
        (lambda folder: (tars_of(folder, images(2)), parquet_of(folder, list(images(2)))), "name one kind"),
        (
            lambda folder: (parquet_of(folder, list(images(2))), parquet_of(folder, list(images(2)), split="test")),
            r"has several splits: test \(1\), train \(1\); choose one with --split, or --split all",
        ),
    ],
    ids=["empty", "no images", "two kinds", "two splits"],
)
def test_ambiguous_sources_are_refused(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    make(tmp_path)
    with pytest.raises((BulkError, DataError), match=message):
        open_source(str(tmp_path))


def test_an_unknown_protocol_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(BulkError, match="cannot be opened"):
        open_source("nowhere://bucket/set")
    with pytest.raises(BulkError, match="no column 'photo'; it has image, label"):
        open_source(str(parquet_of(tmp_path, list(images(2)))), SourceOptions(image_column="photo"))
    shutil.rmtree(tmp_path / "data")
    folder_of(tmp_path, images(2))
    with pytest.raises(BulkError, match="it has no columns"):
        open_source(str(tmp_path), SourceOptions(image_column="image"))


def test_sources_on_any_fsspec_file_system(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    tars_of(tmp_path / "source", images(9))
    with memory.open("/bucket/set-000.tar", "wb") as file:
        file.write((tmp_path / "source" / "set-000.tar").read_bytes())
    assert run(job("memory://bucket/set-*.tar", tmp_path / "tokens")).images == 9
    run(job(tmp_path / "source", tmp_path / "here"))
    assert rows_of(tmp_path / "tokens") == rows_of(tmp_path / "here")
