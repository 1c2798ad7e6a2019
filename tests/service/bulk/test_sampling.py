"""Many generated images: seeds, tokens and images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data.tokens import TokenDataset
from service.bulk.entries import Position
from service.bulk.errors import BulkError
from service.bulk.formats import FORMATS
from service.bulk.image_formats import ImageOptions
from service.bulk.pipeline import cpu_pipeline, gpu_pipeline, make_shards
from service.bulk.sampling import Samples
from tests.service.bulk.data_sets import detokenize_job, digests, rows_of, run, sample_job, task_of
from tests.tiny_models import tiny_generator, tiny_tokenizer


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "samples"
    run(sample_job(folder))
    return folder


def test_image_i_has_the_seed_plus_i_and_the_tokens_of_the_generator(samples: Path) -> None:
    rows = rows_of(samples)
    assert [row["key"] for row in rows] == [f"{number:08d}" for number in range(12)]
    assert [row["class_id"] for row in rows] == [3] * 4 + [0] * 4 + [4] * 4
    for number, row in enumerate(rows):
        tokens = tiny_generator().generate([row["class_id"]], seeds=[1_000 + number], preset="fast")
        assert row["tokens"] == tokens[0].tolist()
    assert len({tuple(row["tokens"]) for row in rows}) == 12


def test_images_are_the_decoded_tokens_by_class(samples: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(samples)) for path in samples.rglob("*.png"))
    assert names == sorted(f"{[3, 0, 4][number // 4]}/{number:08d}.png" for number in range(12))
    asked = detokenize_job(samples, tmp_path / "images")
    run(dataclasses.replace(asked, images=ImageOptions("folder")))
    for name in names:
        assert (tmp_path / "images" / name).read_bytes() == (samples / name).read_bytes()
    first = np.asarray(Image.open(samples / "3/00000000.png")).astype(int)
    decoded = tiny_tokenizer().decode(np.array([rows_of(samples)[0]["tokens"]])).numpy()[0]
    assert abs(first - decoded).max() <= 1  # which depends on the batch


@pytest.mark.parametrize("format_name", FORMATS)
def test_tokens_are_read_as_those_of_a_data_set(format_name: str, samples: Path, tmp_path: Path) -> None:
    """Also beside images of the same kind of file."""
    if format_name == "parquet":
        pytest.importorskip("pyarrow")
    run(sample_job(tmp_path / "samples", format=format_name, images=ImageOptions("webdataset")))
    dataset = TokenDataset(tmp_path / "samples")
    found = [(one["key"], one["label"], one["ids"].tolist()) for one in map(dataset.__getitem__, range(len(dataset)))]
    assert found == [(row["key"], row["class_id"], row["tokens"]) for row in rows_of(samples)]


def test_tokens_do_not_depend_on_batches_devices_and_shards(samples: Path, tmp_path: Path) -> None:
    run(sample_job(tmp_path / "samples", images=None, batch_size=5, threads=1, shard_images=7))
    assert rows_of(tmp_path / "samples") == rows_of(samples)
    assert not list((tmp_path / "samples").rglob("*.png"))


def test_both_pipelines_make_the_same_files(tmp_path: Path) -> None:
    task = task_of(sample_job(tmp_path), tiny_tokenizer())
    made = [
        [task.files(shard) for shard in make_shards(task.job.source.entries(Position(0, 3)), task, pipeline=pipeline)]
        for pipeline in (cpu_pipeline, gpu_pipeline)
    ]
    assert made[0] == made[1]


def test_images_alone_or_tokens_alone_are_written(tmp_path: Path) -> None:
    run(sample_job(tmp_path / "images", format=None, images=ImageOptions("npz")))
    assert digests(tmp_path / "images").keys() == {"images.npz", "images.keys.jsonl", "manifest.json", "errors.jsonl"}
    run(sample_job(tmp_path / "tokens", images=None))
    names = {f"tokens-{shard:06d}.jsonl" for shard in range(3)}
    assert digests(tmp_path / "tokens").keys() == {*names, "manifest.json", "errors.jsonl"}


def test_the_manifest_contains_generator_seeds_and_settings(samples: Path) -> None:
    manifest = json.loads((samples / "manifest.json").read_text())
    assert manifest["generator"] == {"revision": "0" * 12}
    asked = {name: manifest["sampling"][name] for name in ("classes", "per_class", "seed", "preset", "steps")}
    steps = tiny_generator().settings("fast").steps
    assert asked == {"classes": [3, 0, 4], "per_class": 4, "seed": 1_000, "preset": "fast", "steps": steps}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": Samples((3, 0), 6, 1_000)}, r"sampling classes \[3, 0, 4\], not \[3, 0\]"),
        ({"samples": Samples((3, 0, 4), 4, 1)}, "sampling seed 1000, not 1"),
        ({"preset": "demo"}, 'sampling preset "fast", not "demo"'),
        ({"images": None}, "started with images .*, not null"),
    ],
    ids=["classes", "seed", "preset", "images"],
)
def test_a_folder_started_with_other_settings_is_refused(changes: dict[str, Any], message: str, samples: Path) -> None:
    before = digests(samples)
    with pytest.raises(BulkError, match=message):
        run(sample_job(samples, **changes))
    assert digests(samples) == before


def test_seeds_above_the_largest_are_refused() -> None:
    assert Samples((0, 1), 2, 2**63 - 4).count() == 4
    with pytest.raises(BulkError, match="would have the seed 9223372036854775808"):
        Samples((0, 1), 2, 2**63 - 3)


def test_a_generator_of_other_tokens_is_refused(tmp_path: Path) -> None:
    from models import load_generator
    from service.bulk.sampling import Sampling

    with pytest.raises(BulkError, match="makes 32 tokens of 4096 codes; tiny has 16 of 64"):
        Sampling(sample_job(tmp_path), tiny_tokenizer(), load_generator("titok-mini-32"))
