"""The same images in every kind of source, and runs over them with a tiny network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from models.tokenizer import Tokenizer
from service.bulk.crops import Crops
from service.bulk.destination import Destination, Result
from service.bulk.detokenization import Detokenization, DetokenizeJob
from service.bulk.entries import Source
from service.bulk.image_formats import ImageOptions
from service.bulk.job import Job, Task
from service.bulk.pipeline import Progress
from service.bulk.run import run_task
from service.bulk.sampling import SampleJob, Samples, Sampling, source_of
from service.bulk.shards import Shard
from service.bulk.sources import open_source
from service.bulk.token_folders import open_token_source
from service.bulk.tokenization import Tokenization, TokenizeJob
from tests.tiny_models import tiny_generator, tiny_tokenizer

__all__ = [
    "CLASSES",
    "COUNT",
    "Killed",
    "broken_images",
    "detokenize_job",
    "digests",
    "folder_of",
    "images",
    "job",
    "leave_only",
    "parquet_of",
    "rows_of",
    "run",
    "sample_job",
    "tars_of",
    "task_of",
    "tokens_of",
]

COUNT, CLASSES = 23, ("ant", "bee", "cat")
PLAIN: dict[str, Any] = {
    "tokenizer": "tiny",
    "weights": None,
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 2,
    "threads": 2,
}
"""Options of every job."""

JobT = TypeVar("JobT", bound=Job[Any])


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
        format="jsonl",
        crops=Crops(),
        shard_images=5,
        max_pixels=1_000_000,
        **PLAIN,
    )
    return dataclasses.replace(plain, **changes)


def tokens_of(folder: Path, files: list[bytes], **changes: Any) -> Path:
    """The tokens of image files in class folders, with the tiny tokenizer."""
    run(job(folder_of(folder / "source", files), folder / "tokens", **changes))
    return folder / "tokens"


def detokenize_job(source: Path, destination: Path, view: int | None = None, **changes: Any) -> DetokenizeJob:
    """Shards of five images in batches of two, as PNG files in folders, with ``changes``."""
    opened, folder = open_token_source(str(source), view=view)
    images = ImageOptions(changes.pop("format", "folder"), classes=folder.classes, **changes.pop("images", {}))
    plain = DetokenizeJob(
        source=opened, destination=destination, folder=folder, view=view, images=images, shard_images=5, **PLAIN
    )
    return dataclasses.replace(plain, **changes)


def sample_job(destination: Path, **changes: Any) -> SampleJob:
    """Four images of three classes, in shards of five images; tokens as JSON lines, and PNG files in folders."""
    samples = changes.pop("samples", Samples((3, 0, 4), 4, seed=1_000))
    plain = SampleJob(
        source=source_of(samples, "tiny"),
        destination=destination,
        samples=samples,
        generator_weights=None,
        preset="fast",
        format="jsonl",
        images=ImageOptions("folder"),
        shard_images=5,
        **PLAIN,
    )
    return dataclasses.replace(plain, **changes)


def run(asked: Job[Any], *, progress: Progress | None = None, **tokenizer: Any) -> Result:
    """Runs a job with tiny models."""
    return run_task(task_of(asked, tiny_tokenizer(**tokenizer)), progress=progress)


def task_of(asked: Job[Any], tokenizer: Tokenizer) -> Task[Any, Any, Any]:
    match asked:
        case TokenizeJob():
            return Tokenization(asked, tokenizer)
        case DetokenizeJob():
            return Detokenization(asked, tokenizer)
        case SampleJob():
            return Sampling(asked, tokenizer, tiny_generator())
    raise TypeError(asked)


class Killed(BaseException):
    """Simulates SIGKILL."""


def leave_only(shards: set[int], asked: JobT, do: Callable[[JobT], object]) -> None:
    """A run that is killed when exactly these shards are complete, as can happen on a cluster."""
    whole = Destination.add

    def add(self: Destination, shard: Shard, files: Mapping[str, bytes]) -> None:
        if shard.number in shards:
            whole(self, shard, files)

    def die(self: Destination, *_: object) -> None:
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
    """Every file in and below a folder, hidden ones too, with the digest of its bytes."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
