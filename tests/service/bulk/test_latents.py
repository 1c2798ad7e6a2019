"""Latents of data sets: Parquet and .npy files, their manifest, seeds and resuming."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.token_folder import open_tokens
from models.errors import DataError
from service.bulk.crops import Crops
from service.bulk.errors import BulkError
from service.bulk.tokenization import LatentOptions
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits
from tests.service.bulk.data_sets import COUNT, digests, folder_of, images, job, leave_only, run
from tests.tiny_models import tiny_tokenizer

VAE: dict[str, Any] = {"quantize_mode": "vae"}
HALF = LatentOptions(dtype="float16")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("set") / "source", images())


def crops_of(source: Path, key: str, crops: Crops) -> np.ndarray:
    data = (source / f"{key}.jpg").read_bytes()
    return crops.take(decode_image(data, limits=MediaLimits(max_pixels=1_000_000), size=32), 32)


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_means_are_written_as_npy(source: Path, tmp_path: Path) -> None:
    assert run(job(source, tmp_path / "out", format="npy", latents=HALF), **VAE).images == COUNT
    arrays = [np.load(path) for path in sorted((tmp_path / "out").glob("latents-*.npy"))]
    lines = [line for path in sorted((tmp_path / "out").glob("*.keys.jsonl")) for line in path.read_text().splitlines()]
    latents = np.concatenate(arrays)
    assert (latents.dtype, latents.shape, len(lines)) == (np.float16, (COUNT, 16, 5), COUNT)
    vae, keys = tiny_tokenizer(**VAE), [json.loads(line)["key"] for line in lines]
    expected = vae.latents(np.concatenate([crops_of(source, key, Crops()) for key in keys])).numpy()
    assert np.allclose(latents, expected, atol=2e-3)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["output"] == {"format": "npy", "dtype": "float16", "shape": [16, 5], "shard_images": 5}
    assert (manifest["tokenizer"]["num_tokens"], manifest["tokenizer"]["token_size"]) == (16, 5)
    assert manifest["computed_in"]["batch_size"] == 2


def test_samples_of_crops_are_written_as_parquet_by_seed_key_and_view(source: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    options = LatentOptions(dtype="float32", seed=7)
    run(job(source, tmp_path / "out", format="parquet", latents=options, crops=Crops("centre", True)), **VAE)
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("latents-*.parquet"))])
    assert table.schema.field("latents").type == pa.list_(pa.float32(), 80)
    assert table.num_rows == 2 * COUNT
    vae = tiny_tokenizer(**VAE)
    for row in table.slice(0, 4).to_pylist():
        text = f"7/{row['key']}/{row['view']}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        crop = crops_of(source, row["key"], Crops("centre", True))[row["view"]]
        assert np.allclose(row["latents"], vae.latents(crop[None], seeds=[seed])[0].flatten(), atol=1e-5)
    assert manifest_of(tmp_path / "out")["output"]["seed"] == 7


def test_half_precision_of_a_codebook_tokenizer_is_read_from_parquet(source: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    run(job(source, tmp_path / "out", format="parquet", latents=HALF))
    rows = pq.read_table(tmp_path / "out" / "latents-000000.parquet").to_pylist()
    crop = crops_of(source, rows[0]["key"], Crops())
    expected = tiny_tokenizer().latents(crop)[0].numpy().reshape(-1)
    assert np.allclose(np.array(rows[0]["latents"], np.float16), expected, atol=2e-3)


def test_a_resumed_run_has_the_same_bytes(source: Path, tmp_path: Path) -> None:
    options = {"format": "npy", "latents": LatentOptions(dtype="float32", seed=1)}
    run(job(source, tmp_path / "whole", **options), **VAE)
    again = job(source, tmp_path / "parts", **options)
    leave_only({0, 2}, again, lambda asked: run(asked, **VAE))
    run(again, **VAE)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_what_cannot_be_written_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    for name in ("jsonl", "webdataset", "bin"):
        with pytest.raises(BulkError, match=f"latents are written as parquet or npy, not {name}"):
            job(source, tmp_path / "out", format=name, latents=HALF).check()
    with pytest.raises(BulkError, match="no shorter length"):
        job(source, tmp_path / "out", format="npy", latents=HALF, length=3).check()
    with pytest.raises(BulkError, match=r"tiny is a VAE.*--latents"):
        run(job(source, tmp_path / "out"), **VAE)
    with pytest.raises(BulkError, match="tiny is no VAE"):
        run(job(source, tmp_path / "out", format="npy", latents=LatentOptions(dtype="float32", seed=1)))


def test_latents_are_not_read_as_tokens(source: Path, tmp_path: Path) -> None:
    run(job(source, tmp_path / "out", format="npy", latents=HALF), **VAE)
    with pytest.raises(DataError, match="holds latents in float16, not token ids"):
        open_tokens(tmp_path / "out")
