"""Output formats, read with their usual libraries and compared with JSON lines."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.token_folder import open_tokens
from models.preprocessing_options import PREPROCESSING_VERSION, PreprocessingOptions
from service.bulk.crops import Crops
from service.bulk.errors import BulkError
from tests.service.bulk.data_sets import folder_of, images, job, rows_of, run, tars_of

K, BROKEN = 16, 7


@pytest.fixture(scope="module", params=["centre", "ten"])
def crops(request: pytest.FixtureRequest) -> Crops:
    return Crops(request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = images()
    files[BROKEN] = b"broken"
    return folder_of(tmp_path_factory.mktemp("set") / "source", files)


@pytest.fixture(scope="module")
def expected(crops: Crops, source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lines") / "tokens"
    run(job(source, folder, crops=crops))
    return rows_of(folder)


def from_webdataset(folder: Path, crops: Crops) -> Iterator[dict[str, Any]]:
    tariterators = pytest.importorskip("webdataset.tariterators")
    for path in sorted(folder.glob("tokens-*.tar")):
        with path.open("rb") as stream:
            members = tariterators.tar_file_expander([{"url": path.name, "stream": stream}])
            for sample in tariterators.group_by_keys(members):
                tokens = np.lib.format.read_array(io.BytesIO(sample["npy"]))
                assert tokens.dtype == np.uint16
                assert tokens.shape == ((K,) if crops.count == 1 else (crops.count, K))
                yield from _rows(sample["__key__"], int(sample["cls"]), tokens.reshape(crops.count, K))


def from_parquet(folder: Path, crops: Crops) -> Iterator[dict[str, Any]]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("tokens-*.parquet"))])
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    assert table.schema.field("label").type == pa.int64()
    for row in table.to_pylist():
        yield {"key": row["key"], "view": row["view"], "class_id": row["label"], "tokens": row["tokens"]}


def from_npy(folder: Path, crops: Crops) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("tokens-*.npy")):
        tokens = np.load(path)
        assert tokens.dtype == np.uint16
        yield from _beside(path, tokens.reshape(-1, crops.count, K))


def from_bin(folder: Path, crops: Crops) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("tokens-*.bin")):
        yield from _beside(path, np.memmap(path, "<u2", "r").reshape(-1, crops.count, K))


def _beside(path: Path, tokens: Any) -> Iterator[dict[str, Any]]:
    lines = path.with_suffix(".keys.jsonl").read_text().splitlines()
    for line, image in zip(map(json.loads, lines), tokens, strict=True):
        yield from _rows(line["key"], line["label"], image)


def _rows(key: str, label: int, tokens: Any) -> Iterator[dict[str, Any]]:
    for view, ids in enumerate(tokens.tolist()):
        yield {"key": key, "view": view, "class_id": label, "tokens": ids}


READERS: dict[str, Callable[[Path, Crops], Iterator[dict[str, Any]]]] = {
    "webdataset": from_webdataset,
    "parquet": from_parquet,
    "npy": from_npy,
    "bin": from_bin,
}


@pytest.mark.parametrize("name", READERS)
def test_every_format_contains_the_same_data_as_json_lines(
    name: str, crops: Crops, source: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(job(source, tmp_path / "tokens", format=name, crops=crops))
    assert list(READERS[name](tmp_path / "tokens", crops)) == expected


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [("jsonl", "json", "jsonl"), ("parquet", "parquet", "parquet"), ("webdataset", "webdataset", "tar")],
)
def test_hugging_face_datasets_reads_the_same_data(
    name: str, kind: str, suffix: str, crops: Crops, source: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    run(job(source, tmp_path / "tokens", format=name, crops=crops))
    files = sorted(map(str, (tmp_path / "tokens").glob(f"tokens-*.{suffix}")))
    loaded = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    if name == "webdataset":
        images = [_rows(row["__key__"], row["cls"], np.array(row["npy"]).reshape(crops.count, K)) for row in loaded]
        rows = [row for image in images for row in image]
    else:
        rows = [{name.replace("label", "class_id"): value for name, value in row.items()} for row in loaded]
    assert rows == expected


@pytest.mark.parametrize("name", ["jsonl", *READERS])
def test_the_manifest_names_every_file_with_its_digest(name: str, source: Path, tmp_path: Path) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    folder = tmp_path / "tokens"
    result = run(job(source, folder, format=name))
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [file for shard in manifest["shards"] for file in shard["files"]] + [manifest["errors"]]
    assert {file["name"] for file in files} | {"manifest.json"} == {path.name for path in folder.iterdir()}
    for file in files:
        content = (folder / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    assert (manifest["counts"]["images"], manifest["counts"]["broken"]) == (result.images, result.broken) == (22, 1)
    assert manifest["output"] == {"format": name, "dtype": "uint16", "shard_images": 5}
    assert manifest["tokenizer"]["weights"] == "0" * 64
    assert manifest["preprocessing"]["version"] == PREPROCESSING_VERSION


@pytest.mark.parametrize("name", ["jsonl", *READERS])
def test_a_shard_of_broken_images_alone_is_empty_and_readable(name: str, tmp_path: Path) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    folder_of(tmp_path / "source", [b""] * 6)
    assert run(job(tmp_path / "source", tmp_path / "tokens", format=name)).broken == 6
    if name not in ("jsonl", "bin"):  # nothing can be mapped in a file of no bytes
        assert list(READERS[name](tmp_path / "tokens", Crops())) == []


def test_dots_in_keys_are_escaped_for_webdataset_readers(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("v1.5 50%.jpg", "v1.6.jpg"):
        (tmp_path / "source" / name).write_bytes(images(1)[0])
    run(job(tmp_path / "source", tmp_path / "tokens", format="webdataset"))
    with tarfile.open(tmp_path / "tokens" / "tokens-000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["v1%2E5 50%25.npy", "v1%2E6.npy"]
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


def test_a_file_name_that_is_not_utf8_is_escaped_in_its_key(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "source").mkdir()
    path = bytes(tmp_path / "source") + b"/caf\xe9.jpg"
    with open(path, "wb") as file:  # noqa: PTH123  a path of bytes
        file.write(images(1)[0])
    for name in ("jsonl", "parquet", "webdataset"):
        assert run(job(tmp_path / "source", tmp_path / name, format=name)).images == 1
    assert rows_of(tmp_path / "jsonl")[0]["key"] == "caf\\xe9"


def test_tokens_are_in_the_order_of_the_tars(tmp_path: Path) -> None:
    run(job(tars_of(tmp_path / "source", images(), each=4), tmp_path / "tokens"))
    assert [row["key"][-4:] for row in rows_of(tmp_path / "tokens")] == [f"{number:04d}" for number in range(23)]


def test_the_manifest_says_how_images_were_decoded(source: Path, tmp_path: Path) -> None:
    service = PreprocessingOptions(color="srgb", jpeg_scale="auto")
    run(job(source, tmp_path / "tokens", preprocessing=service))

    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())

    assert manifest["preprocessing"]["version"] == f"{PREPROCESSING_VERSION}cs"
    assert f"-p{PREPROCESSING_VERSION}cs" in manifest["tokenizer"]["revision"]


@pytest.mark.parametrize("name", ["parquet", "bin"])
def test_shorter_codes_are_the_first_tokens(
    name: str, crops: Crops, source: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder, length = tmp_path / "tokens", 3
    run(job(source, folder, format=name, crops=crops, length=length), min_tokens=1)
    assert json.loads((folder / "manifest.json").read_text())["tokenizer"]["num_tokens"] == length
    opened = open_tokens(folder)
    ids = np.concatenate([block.ids for shard in opened.shards for block in shard.blocks()])
    assert ids.tolist() == [row["tokens"][:length] for row in expected]


def test_a_length_that_the_tokenizer_does_not_decode_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BulkError, match="tiny: an image has 16 token ids, not 3; the tokenizer is not prefix-decodable"
    ):
        run(job(source, tmp_path / "tokens", length=3))
