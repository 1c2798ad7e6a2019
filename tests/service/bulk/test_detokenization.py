"""Tokens to images: every format of tokens, every format of images, read with their usual libraries."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import DataError
from service.bulk.crops import Crops
from service.bulk.entries import Position
from service.bulk.errors import BulkError
from service.bulk.formats import FORMATS
from service.bulk.image_formats import ImageOptions
from service.bulk.pipeline import cpu_pipeline, gpu_pipeline, make_shards
from service.bulk.run import run_job
from service.bulk.sources import open_source
from service.bulk.token_folders import open_token_source
from tests.service.bulk.data_sets import (
    CLASSES,
    COUNT,
    broken_images,
    detokenize_job,
    digests,
    folder_of,
    images,
    job,
    rows_of,
    run,
    task_of,
    tokens_of,
)
from tests.tiny_models import tiny_tokenizer

S = 32


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens of 23 images of three classes."""
    return tokens_of(tmp_path_factory.mktemp("set"), images())


@pytest.fixture(scope="module")
def expected(tokens: Path) -> dict[str, Any]:
    """The pixels uint8 [S, S, 3] of each key, in the order of the tokens, in batches of the same rows as the job's."""
    rows = rows_of(tokens)
    pixels = {}
    for shard in range(0, COUNT, 5):
        for first in range(shard, min(shard + 5, COUNT), 2):
            batch = rows[first : min(first + 2, shard + 5)]
            decoded = tiny_tokenizer().decode(np.array([row["tokens"] for row in batch])).numpy()
            pixels |= {row["key"]: image for row, image in zip(batch, decoded, strict=True)}
    return pixels


def pixels_of(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def from_folder(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*.png")):
        yield str(path.relative_to(folder).with_suffix("")), pixels_of(path.read_bytes())


def from_webdataset(folder: Path) -> Iterator[tuple[str, Any]]:
    tariterators = pytest.importorskip("webdataset.tariterators")
    for path in sorted(folder.glob("images-*.tar")):
        with path.open("rb") as stream:
            members = tariterators.tar_file_expander([{"url": path.name, "stream": stream}])
            for sample in tariterators.group_by_keys(members):
                assert int(sample["cls"]) == CLASSES.index(sample["__key__"].split("/")[0])
                yield sample["__key__"], pixels_of(sample["png"])


def from_npz(folder: Path) -> Iterator[tuple[str, Any]]:
    with np.load(folder / "images.npz") as arrays:
        assert arrays.files == ["arr_0"]
        pixels = arrays["arr_0"]
    lines = (folder / "images.keys.jsonl").read_text().splitlines()
    yield from zip([json.loads(line)["key"] for line in lines], pixels, strict=True)


READERS = {"folder": from_folder, "webdataset": from_webdataset, "npz": from_npz}


@pytest.mark.parametrize("written", READERS)
def test_every_format_contains_the_decoded_pixels(
    written: str, tokens: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    result = run(detokenize_job(tokens, tmp_path / "images", format=written))
    assert (result.images, result.broken, result.shards) == (COUNT, 0, 5)
    found = dict(READERS[written](tmp_path / "images"))
    assert list(found) == list(expected)
    for key, pixels in expected.items():
        np.testing.assert_array_equal(found[key], pixels)
    manifest = json.loads((tmp_path / "images" / "manifest.json").read_text())
    files = [file for shard in manifest["shards"] for file in shard["files"]] + manifest.get("merged", [])
    assert {file["name"] for file in files} == digests(tmp_path / "images").keys() - {"manifest.json", "errors.jsonl"}
    assert {file["name"]: file["sha256"] for file in files}.items() <= digests(tmp_path / "images").items()


@pytest.mark.parametrize(("written", "kind"), [("webdataset", "webdataset"), ("folder", "imagefolder")])
def test_hugging_face_datasets_reads_the_same_pixels(
    written: str, kind: str, tokens: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    run(detokenize_job(tokens, tmp_path / "images", format=written))
    pattern = str(tmp_path / "images" / ("*.tar" if written == "webdataset" else "*/*.png"))
    loaded = datasets.load_dataset(kind, data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    image, label = ("png", "cls") if written == "webdataset" else ("image", "label")
    assert [row[label] for row in loaded] == [row["class_id"] for row in rows_of(tokens)]
    for row, pixels in zip(loaded, expected.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(row[image]), pixels)


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_of_tokens_gives_the_same_images(format_name: str, tokens: Path, tmp_path: Path) -> None:
    if format_name == "parquet":
        pytest.importorskip("pyarrow")
    source = tokens_of(tmp_path / "set", images(), format=format_name)
    run(detokenize_job(source, tmp_path / "images", format="webdataset"))
    run(detokenize_job(tokens, tmp_path / "expected", format="webdataset"))
    found, wanted = digests(tmp_path / "images"), digests(tmp_path / "expected")
    assert {name: found[name] for name in wanted if "images-" in name} == {
        name: digest for name, digest in wanted.items() if "images-" in name
    }


def test_a_folder_of_images_is_a_source_with_the_same_labels(tokens: Path, tmp_path: Path) -> None:
    run(detokenize_job(tokens, tmp_path / "images"))
    source = open_source(str(tmp_path / "images"))
    assert source.classes == CLASSES
    (part,) = source.parts
    rows = rows_of(tokens)
    assert [(entry.key, entry.label) for entry in part.entries(0)] == [(row["key"], row["class_id"]) for row in rows]


@pytest.mark.parametrize("view", [None, 3])
def test_all_views_or_one_are_decoded(view: int | None, tmp_path: Path) -> None:
    source = tokens_of(tmp_path / "set", images(4), crops=Crops("ten"), format="npy")
    asked = detokenize_job(source, tmp_path / "images", view=view, format="webdataset")
    assert asked.source.total == (4 if view is not None else 40)
    assert run(asked).images == asked.source.total
    names = []
    for path in sorted((tmp_path / "images").glob("*.tar")):
        with tarfile.open(path) as archive:
            names += [name for name in archive.getnames() if name.endswith(".png")]
    views = range(10) if view is None else [None]
    endings = ["" if one is None else f"-{one}" for one in views]
    assert names == [f"ant/{number:04d}{ending}.png" for number in range(4) for ending in endings]
    with pytest.raises(BulkError, match="has 10 views of each image: choose one of 0 to 9"):
        detokenize_job(source, tmp_path / "images", view=10)


def test_both_pipelines_make_the_same_files(tokens: Path, tmp_path: Path) -> None:
    task = task_of(detokenize_job(tokens, tmp_path / "images"), tiny_tokenizer())
    made = [
        [task.files(shard) for shard in make_shards(task.job.source.entries(Position(1, 2)), task, pipeline=pipeline)]
        for pipeline in (cpu_pipeline, gpu_pipeline)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(("media_type", "suffix"), [("image/jpeg", "jpg"), ("image/webp", "webp")])
def test_image_files_have_the_format_and_quality_asked_for(
    media_type: str, suffix: str, tokens: Path, tmp_path: Path
) -> None:
    sizes = []
    for quality in (30, None):
        options = {"media_type": media_type, "quality": quality}
        run(detokenize_job(tokens, tmp_path / str(quality), images=options))
        files = sorted((tmp_path / str(quality)).rglob(f"*.{suffix}"))
        assert len(files) == COUNT
        with Image.open(files[0]) as image:
            assert image.get_format_mimetype() == media_type
        sizes.append(sum(path.stat().st_size for path in files))
    assert sizes[0] < sizes[1]
    manifest = json.loads((tmp_path / "None" / "manifest.json").read_text())
    assert manifest["images"] == {"format": "folder", "media_type": media_type, "quality": 90, "shard_images": 5}
    with pytest.raises(BulkError, match="PNG is lossless"):
        ImageOptions("folder", quality=30)


def test_the_npz_is_one_uncompressed_array_as_numpy_writes_it(tokens: Path, tmp_path: Path) -> None:
    run(detokenize_job(tokens, tmp_path / "images", format="npz"))
    with np.load(tmp_path / "images" / "images.npz") as arrays:
        pixels = arrays["arr_0"]
    assert (pixels.dtype, pixels.shape) == (np.uint8, (COUNT, S, S, 3))
    np.savez(tmp_path / "numpy.npz", pixels)
    archives = [zipfile.ZipFile(path) for path in (tmp_path / "images" / "images.npz", tmp_path / "numpy.npz")]
    (ours, numpy) = (archive.read("arr_0.npy") for archive in archives)
    assert ours == numpy
    assert [archive.infolist()[0].compress_type for archive in archives] == [zipfile.ZIP_STORED] * 2


@pytest.mark.parametrize("format_name", ["npy", "jsonl"])
def test_tokens_without_a_manifest_are_decoded(format_name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    source = tokens_of(tmp_path / "set", images(), format=format_name)
    for name in ("manifest.json", "errors.jsonl"):
        (source / name).unlink()
    run(detokenize_job(source, tmp_path / "images", format="npz"))
    for found, wanted in zip(dict(from_npz(tmp_path / "images")).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_tokens_of_another_tokenizer_are_refused(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"were made with tiny \(0{12}\), not with titok-mini-32 \([0-9a-f]{12}\)"):
        run_job(detokenize_job(tokens, tmp_path / "images", tokenizer="titok-mini-32"))
    assert not (tmp_path / "images").exists()


def test_too_few_tokens_and_ids_out_of_range_are_refused(tmp_path: Path) -> None:
    for name, ids, message in (
        ("short", np.zeros((3, 15), np.uint16), "an image has 16 token ids, not 15"),
        ("large", np.full((3, 16), 64, np.uint16), r"64"),
    ):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "samples.npy", ids)
        with pytest.raises(ValueError, match=message):
            run(detokenize_job(tmp_path / name, tmp_path / f"{name} images"))


def test_changed_tokens_are_refused(tmp_path: Path) -> None:
    source = tokens_of(tmp_path / "set", images(4), format="npy")
    data = bytearray((source / "tokens-000000.npy").read_bytes())
    data[-2] ^= 1
    (source / "tokens-000000.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"tokens-000000\.npy has changed"):
        open_token_source(str(source))


@pytest.mark.parametrize("shard_images", [5, 1])
def test_images_with_the_same_name_are_refused(shard_images: int, tmp_path: Path) -> None:
    """Keys need not be unique in tokens of another origin."""
    (tmp_path / "tokens").mkdir()
    line = json.dumps({"key": "a", "class_id": 1, "tokens": [0] * 16}) + "\n"
    (tmp_path / "tokens" / "tokens.jsonl").write_text(2 * line)
    with pytest.raises(BulkError, match=r"1/a\.png"):
        run(detokenize_job(tmp_path / "tokens", tmp_path / "images", shard_images=shard_images))
    assert run(detokenize_job(tmp_path / "tokens", tmp_path / "npz", format="npz")).images == 2


@pytest.mark.parametrize(
    ("key", "class_id", "name"),
    [
        ("../../etc/passwd", None, "%2E.%2F..%2Fetc%2Fpasswd.png"),
        ("/etc/passwd", 2, "2/%2Fetc%2Fpasswd.png"),
        ("a.b", "..", "%2E./a.b.png"),
        ("50%", None, "50%25.png"),
        ("a\nb", None, "a%0Ab.png"),
        ("", None, "%.png"),
    ],
)
def test_a_file_is_written_below_the_folder_whatever_its_key(
    key: str, class_id: int | str | None, name: str, tmp_path: Path
) -> None:
    (tmp_path / "tokens").mkdir()
    line = json.dumps({"key": key, "class_id": class_id, "tokens": [0] * 16}) + "\n"
    (tmp_path / "tokens" / "tokens.jsonl").write_text(line)
    run(detokenize_job(tmp_path / "tokens", tmp_path / "images"))
    assert digests(tmp_path / "images").keys() == {name, "manifest.json", "errors.jsonl"}
    run(detokenize_job(tmp_path / "tokens", tmp_path / "archives", format="webdataset"))
    with tarfile.open(tmp_path / "archives" / "images-000000.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")  # which raises for a path outside of the folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "npz"}, 'images format "folder", not "npz"'),
        ({"batch_size": 3}, "computed_in batch_size 2, not 3"),
        ({"view": 0}, "view null, not 0"),
    ],
    ids=["format", "batch size", "view"],
)
def test_a_folder_started_with_other_settings_is_refused(
    changes: dict[str, Any], message: str, tokens: Path, tmp_path: Path
) -> None:
    run(detokenize_job(tokens, tmp_path / "images"))
    with pytest.raises(BulkError, match=message):
        run(detokenize_job(tokens, tmp_path / "images", **changes))


def test_broken_images_are_not_missed(tmp_path: Path) -> None:
    source = tokens_of(tmp_path / "set", broken_images())
    assert run(detokenize_job(source, tmp_path / "images")).images == COUNT - 2


def test_a_folder_that_is_no_output_of_tokens_is_refused(tmp_path: Path) -> None:
    run(job(tokens_of(tmp_path / "set", images(2)).parent / "source", tmp_path / "tokens"))
    run(detokenize_job(tmp_path / "tokens", tmp_path / "images"))
    with pytest.raises(DataError, match="is not the manifest of tokens"):
        open_token_source(str(tmp_path / "images"))


def test_shorter_codes_are_decoded(tmp_path: Path) -> None:
    run(job(folder_of(tmp_path / "source", images(4)), tmp_path / "tokens", length=3), min_tokens=1)
    run(detokenize_job(tmp_path / "tokens", tmp_path / "images", format="npz"), min_tokens=1)
    (_, first), *_ = from_npz(tmp_path / "images")
    ids = np.array([row["tokens"] for row in rows_of(tmp_path / "tokens")])[:2]
    np.testing.assert_array_equal(first, tiny_tokenizer(min_tokens=1).decode(ids)[0])
    with pytest.raises(BulkError, match="tiny: an image has 16 token ids, not 3"):
        run(detokenize_job(tmp_path / "tokens", tmp_path / "refused"))
