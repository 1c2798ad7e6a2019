"""The same images in every kind of source, and runs over them with a tiny network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.bulk.crops import Crops
from service.bulk.destination import Destination
from service.bulk.entries import Source
from service.bulk.job import Result
from service.bulk.pipeline import Progress
from service.bulk.run import run_task
from service.bulk.shards import Shard
from service.bulk.sources import open_source
from service.bulk.tokenization import Tokenization, TokenizeJob
from tests.tiny_models import tiny_tokenizer

__all__ = [
    "CLASSES",
    "COUNT",
    "Killed",
    "broken_images",
    "digests",
    "folder_of",
    "images",
    "job",
    "leave_only",
    "parquet_of",
    "rows_of",
    "run",
    "tars_of",
]

COUNT, CLASSES = 23, ("ant", "bee", "cat")


def images(count: int = COUNT) -> list[bytes]:
    """JPEG and PNG files of several sizes, all different."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        size = (int(rng.integers(30, 90)), int(rng.integers(30, 90)))
        written = io.BytesIO()
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture.save(written, "PNG" if number % 5 == 0 else "JPEG")
        files.append(written.getvalue())
    return files


def broken_images() -> list[bytes]:
    """The same files, two of them broken."""
    files = images()
    files[4], files[13] = b"broken", files[13][:100]
    return files


def label_of(number: int) -> int:
    return number * len(CLASSES) // COUNT


def folder_of(folder: Path, files: list[bytes]) -> Path:
    for number, data in enumerate(files):
        path = folder / CLASSES[label_of(number)] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tars_of(folder: Path, files: list[bytes], *, each: int = 9, suffix: str = ".tar") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(files), each):
        mode = "w:gz" if suffix != ".tar" else "w"
        with tarfile.open(folder / f"set-{first // each:03d}{suffix}", mode) as archive:
            for number, data in enumerate(files[first : first + each], first):
                key = f"{CLASSES[label_of(number)]}/{number:04d}"
                add_member(archive, f"{key}.jpg", data)
                add_member(archive, f"{key}.cls", str(label_of(number)).encode())
    return folder


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def parquet_of(folder: Path, files: list[bytes | None], *, each: int = 9, split: str = "train") -> Path:
    """A dataset as Hugging Face writes it: several files, class names in the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    parts = range(0, len(files), each)
    for part, first in enumerate(parts):
        rows = list(enumerate(files[first : first + each], first))
        paths = [f"{CLASSES[label_of(number)]}/{number:04d}.jpg" for number, _ in rows]
        structs = [{"bytes": data, "path": path} for (_, data), path in zip(rows, paths, strict=True)]
        table = pa.table(
            {
                "image": pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "label": pa.array([label_of(number) for number, _ in rows], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        name = f"{split}-{part:05d}-of-{len(parts):05d}.parquet"
        pq.write_table(table, folder / "data" / name, row_group_size=4)
    return folder


def job(source: Source | Path | str, destination: Path, **changes: Any) -> TokenizeJob:
    """Shards of five images in batches of two crops, with ``changes``."""
    plain = TokenizeJob(
        source=source if isinstance(source, Source) else open_source(str(source)),
        destination=destination,
        tokenizer="tiny",
        weights=None,
        device="cpu",
        dtype="float32",
        format="jsonl",
        crops=Crops(),
        shard_images=5,
        batch_size=2,
        threads=2,
        max_pixels=1_000_000,
    )
    return dataclasses.replace(plain, **changes)


def run(asked: TokenizeJob, *, progress: Progress | None = None, **tokenizer: Any) -> Result:
    return run_task(Tokenization(asked, tiny_tokenizer(**tokenizer)), progress=progress)


class Killed(BaseException):
    """Simulates SIGKILL."""


def leave_only(shards: set[int], asked: TokenizeJob, do: Callable[[TokenizeJob], object]) -> None:
    """A run that is killed when exactly these shards are complete, as can happen on a cluster."""
    whole = Destination.add

    def add(self: Destination, shard: Shard, files: Mapping[str, bytes]) -> None:
        if shard.number in shards:
            whole(self, shard, files)

    def die(self: Destination, manifest: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Destination, "add", add)
        patch.setattr(Destination, "finish", die)
        with pytest.raises(Killed):
            do(asked)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of all JSON-lines shards."""
    return [
        json.loads(line) for file in sorted(folder.glob("tokens-*.jsonl")) for line in file.read_text().splitlines()
    ]


def digests(folder: Path) -> dict[str, str]:
    """Every file in a folder, hidden ones too, with the digest of its bytes."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
