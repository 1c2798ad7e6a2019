"""Resuming: a run killed at any moment and run again ends in the bytes of an uninterrupted run."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import service.bulk.destination
from service.bulk.crops import Crops
from service.bulk.destination import Destination
from service.bulk.errors import BulkError
from service.bulk.job import Job
from service.bulk.run import with_resume_hint
from tests.service.bulk import killable
from tests.service.bulk.data_sets import (
    COUNT,
    Killed,
    broken_images,
    detokenize_job,
    digests,
    folder_of,
    images,
    job,
    leave_only,
    parquet_of,
    run,
    tars_of,
    tokens_of,
)

KILLS = int(os.environ.get("TITOK_TEST_KILLS", "6"))  # 50 for a release
SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda folder: folder_of(folder, broken_images()),
    "tars": lambda folder: tars_of(folder, broken_images()),
    "parquet": lambda folder: parquet_of(folder, list(broken_images())),
    "tokens": lambda folder: tokens_of(folder, images()),
    "classes": lambda folder: folder,
}
JOBS: dict[str, Callable[[Path, Path], Job[Any]]] = {
    **dict.fromkeys(("folder", "tars", "parquet"), job),
    "tokens": lambda source, destination: detokenize_job(source, destination, format="npz", shard_images=9),
}


@pytest.mark.parametrize(
    ("command", "kind", "written"),
    [
        ("tokenize", "folder", "webdataset"),
        ("tokenize", "tars", "npy"),
        ("tokenize", "parquet", "parquet"),
        ("detokenize", "tokens", "folder"),
        ("sample", "classes", "npz"),
    ],
)
def test_runs_killed_at_random_moments_resume_to_identical_bytes(
    command: str, kind: str, written: str, tmp_path: Path
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    source = SOURCES[kind](tmp_path / "source")
    killable.start(
        command, source, tmp_path / "first", written
    ).join()  # the forking process itself takes seconds to begin
    begun = time.monotonic()
    undisturbed = killable.start(command, source, tmp_path / "whole", written)
    undisturbed.join()
    lasted = time.monotonic() - begun
    assert undisturbed.exitcode == 0
    chance, died = random.Random(f"{kind} {KILLS}"), 0
    while died < KILLS:
        destination = tmp_path / "killed"
        shutil.rmtree(destination, ignore_errors=True)
        for _ in range(3):  # killed again while it resumes
            process = killable.start(command, source, destination, written)
            process.join(chance.uniform(0.0, 1.1 * lasted))
            process.kill()
            process.join()
            died += process.exitcode != 0
        last = killable.start(command, source, destination, written)
        last.join()
        assert last.exitcode == 0
        assert digests(destination) == digests(tmp_path / "whole")


@pytest.mark.parametrize("kind", JOBS)
def test_runs_killed_at_any_fsync_resume_to_identical_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills a run at each of its ``fsync`` calls in turn."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    source = SOURCES[kind](tmp_path / "source")
    run(JOBS[kind](source, tmp_path / "whole"))
    fsync, moment = os.fsync, 0
    while True:
        moment, calls = moment + 1, 0

        def die_in_time(file: int, moment: int = moment) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            fsync(file)

        destination = tmp_path / f"killed-{moment}"
        monkeypatch.setattr(service.bulk.destination.os, "fsync", die_in_time)
        try:
            run(JOBS[kind](source, destination))
        except Killed:
            monkeypatch.setattr(service.bulk.destination.os, "fsync", fsync)
            run(JOBS[kind](source, destination))
            assert digests(destination) == digests(tmp_path / "whole")
        else:
            break
    assert moment > 10


def test_the_shard_of_a_truncated_journal_line_is_made_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images())
    run(job(source, tmp_path / "whole"))
    stopped_after(3, source, tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    (tmp_path / "cut" / "tokens-000003.jsonl.partial").write_bytes(b"half")
    stopped_after(4, source, tmp_path / "cut")  # what is written behind the cut counts as well
    run(job(source, tmp_path / "cut"))
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_complete_shards_in_any_order_are_kept_and_the_missing_ones_made(tmp_path: Path) -> None:
    source = tars_of(tmp_path / "source", broken_images())
    run(job(source, tmp_path / "whole"))
    for whole in ({1, 4}, {0, 2, 3}, {4}):
        destination = tmp_path / f"{whole}"
        leave_only(whole, job(source, destination), run)
        before = {path.name: path.stat().st_mtime_ns for path in destination.glob("tokens-*")}
        assert len(before) == len(whole)
        seen: list[int] = []
        run(job(source, destination), progress=lambda done, _, seen=seen: seen.append(done))
        assert sum(seen) == COUNT
        assert {name: (destination / name).stat().st_mtime_ns for name in before} == before
        assert digests(destination) == digests(tmp_path / "whole")


def test_complete_shards_are_not_made_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images())
    stopped_after(3, source, tmp_path / "tokens")
    files = [tmp_path / "tokens" / f"tokens-{shard:06d}.jsonl" for shard in range(3)]
    before = [file.stat().st_mtime_ns for file in files]
    seen: list[int] = []
    run(job(source, tmp_path / "tokens"), progress=lambda done, _: seen.append(done))
    assert (seen[0], sum(seen)) == (15, COUNT)  # at once, what was there
    assert [file.stat().st_mtime_ns for file in files] == before


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", broken_images())
    first = run(job(source, tmp_path / "tokens"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    assert run(job(source, tmp_path / "tokens")) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()} == before


@pytest.mark.parametrize("finished", [False, True], ids=["half done", "done"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "npy"}, 'output format "jsonl", not "npy"'),
        ({"shard_images": 6}, "output shard_images 5, not 6"),
        ({"crops": Crops("ten")}, 'preprocessing crops "centre", not "ten"'),
        ({"crops": Crops(flip=True)}, "preprocessing flip false, not true"),
        ({"max_pixels": 7}, "preprocessing max_pixels 1000000, not 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_started_with_other_settings_is_refused(
    changes: dict[str, object], message: str, finished: bool, tmp_path: Path
) -> None:
    source = folder_of(tmp_path / "source", images())
    if finished:
        run(job(source, tmp_path / "tokens"))
    else:
        stopped_after(2, source, tmp_path / "tokens")
    before = digests(tmp_path / "tokens")
    with pytest.raises(BulkError, match=f"{message}: use the same options, or another folder"):
        run(job(source, tmp_path / "tokens", **changes))
    assert digests(tmp_path / "tokens") == before


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images())
    stopped_after(2, source, tmp_path / "tokens")
    (source / "ant" / "0000.jpg").write_bytes(images()[1])
    with pytest.raises(BulkError, match="was started with source digest"):
        run(job(source, tmp_path / "tokens"))


def test_the_batch_size_may_change_in_float32(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", broken_images())
    run(job(source, tmp_path / "whole"))
    stopped_after(2, source, tmp_path / "tokens")
    run(job(source, tmp_path / "tokens", batch_size=5, threads=1))
    assert digests(tmp_path / "tokens") == digests(tmp_path / "whole")


def test_the_batch_size_may_not_change_below_float32(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images(6))
    run(job(source, tmp_path / "tokens"), dtype="bfloat16")
    with pytest.raises(BulkError, match="computed_in batch_size 2, not 4"):
        run(job(source, tmp_path / "tokens", batch_size=4), dtype="bfloat16")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images(2))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "thesis.txt").write_text("mine")
    with pytest.raises(BulkError, match="is not empty"):
        run(job(source, tmp_path / "tokens"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BulkError, match="cannot write to"):
        run(job(source, tmp_path / "file"))


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images(2))
    with Destination(tmp_path / "tokens", {}), pytest.raises(BulkError, match="another process is writing"):
        run(job(source, tmp_path / "tokens"))


def test_a_missing_output_file_is_detected(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", images())
    stopped_after(3, source, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokens-000001.jsonl").unlink()
    with pytest.raises(BulkError, match=r"tokens-000001\.jsonl is not as it was written"):
        run(job(source, tmp_path / "tokens"))


def test_a_vae_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="its tokens are vectors, not ids"):
        run(job(folder_of(tmp_path / "source", images(2)), tmp_path / "tokens"), quantize_mode="vae")
    assert not (tmp_path / "tokens").exists()


def stopped_after(shards: int, source: Path, destination: Path) -> None:
    """A run that is killed after its first ``shards`` shards."""
    leave_only(set(range(shards)), job(source, destination), run)


@pytest.mark.parametrize(("file", "named"), [("/full/tokens", "/full/tokens"), (None, "source or .*tokens")])
def test_an_error_of_a_file_system_says_how_to_resume(file: str | None, named: str, tmp_path: Path) -> None:
    asked = job(folder_of(tmp_path / "source", broken_images()), tmp_path / "tokens")
    expected = f"{named}: No space left on device; written shards are complete, run the same command again to resume"
    with pytest.raises(BulkError, match=expected), with_resume_hint(asked):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)
