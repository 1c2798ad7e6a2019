"""Runs on a Ray cluster of two nodes: identical bytes to one machine, even if a node is lost."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import CheckpointError
from service.bulk.errors import BulkError
from service.bulk.formats import FORMATS
from service.bulk.image_folders import ImageFolder
from service.bulk.job import Job
from service.bulk.run import run_job
from service.bulk.sources import open_source
from service.bulk.tokenization import TokenizeJob
from tests.ray_cluster import two_nodes
from tests.service.bulk.data_sets import (
    CLASSES,
    broken_images,
    detokenize_job,
    digests,
    folder_of,
    job,
    leave_only,
    sample_job,
    tars_of,
)
from tests.service.bulk.waiting_files import WaitingFiles

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray has some of every kind

SECONDS = 60.0
RELEASE = int(os.environ.get("TITOK_TEST_KILLS", "6")) >= 50


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as nodes:
        yield nodes


def on_ray(asked: Job[Any], **options: Any) -> Any:
    from service.bulk.on_ray import run_on_ray

    return run_on_ray(asked, "auto", **options)


def asked_for(source: Any, destination: Path, format_name: str) -> TokenizeJob:
    return job(source, destination, tokenizer="titok-mini-32", format=format_name, threads=0, max_pixels=40_000_000)


@pytest.mark.parametrize("command", ["sample", "detokenize"] if RELEASE else ["sample"])
def test_images_on_two_nodes_are_those_of_one_machine(command: str, cluster: Any, tmp_path: Path) -> None:
    """Also where a run on one machine was killed."""
    here = run_job(images_of(command, tmp_path, "here"))
    leave_only({1}, images_of(command, tmp_path, "ray"), run_job)
    assert on_ray(images_of(command, tmp_path, "ray")) == here
    assert digests(tmp_path / "ray") == digests(tmp_path / "here")


@pytest.mark.parametrize("command", ["sample", "detokenize"])
def test_an_actor_writes_the_same_images_as_one_machine(command: str, tmp_path: Path) -> None:
    from service.bulk.on_ray import ShardActor

    run_job(images_of(command, tmp_path, "here"))
    asked = images_of(command, tmp_path, "ray")
    actor = ShardActor(asked, asked.load().settings, 1)
    for number, start in enumerate(range(0, 12, 5)):
        part, offset = (0, start) if command == "sample" else (number, 0)
        _, files = made_by(actor, number, part, offset)
        assert files
        assert files == {name: (tmp_path / "here" / name).read_bytes() for name in files}


def images_of(command: str, folder: Path, destination: str) -> Job[Any]:
    """Twelve images of the shipped generator, or of its tokens."""
    model = {"tokenizer": "titok-mini-32", "threads": 0}
    if command == "sample":
        return sample_job(folder / destination, **model)
    if not (folder / "tokens").exists():
        run_job(sample_job(folder / "tokens", images=None, **model))
    return detokenize_job(folder / "tokens", folder / destination, **model)


def made_by(actor: Any, number: int, part: int, offset: int) -> Any:
    """The shard and its files."""
    row = {"number": np.array([number]), "part": np.array([part]), "offset": np.array([offset])}
    return pickle.loads(actor(row)["result"][0])  # noqa: S301


def test_killing_a_node_changes_no_byte_and_repeats_no_complete_shard(cluster: Any, tmp_path: Path) -> None:
    """One image is a pipe: the actor that opens it blocks within its shard, and its node is killed."""
    folder = folder_of(tmp_path / "source", broken_images())
    paths = [[f"{name}/{path.name}" for path in (folder / name).iterdir()] for name in CLASSES]
    parts = tuple(ImageFolder(WaitingFiles(), str(folder), dict(zip(some, some, strict=True))) for some in paths)
    source = dataclasses.replace(open_source(str(folder)), parts=parts)
    here = run_job(asked_for(source, tmp_path / "here", "parquet"))
    leave_only({0, 3}, asked_for(source, tmp_path / "ray", "parquet"), run_job)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("tokens-*")}
    seen: list[tuple[int, int]] = []
    image = folder / "bee" / "0010.jpg"
    image.rename(tmp_path / "image")
    os.mkfifo(image)
    pipe, killed = list[int](), Future[Any]()

    def kill() -> None:
        try:
            pipe.append(os.open(image, os.O_WRONLY))  # returns when somebody opens it to read
            node = node_of(reader_of(image), cluster)
            (tmp_path / "image").rename(image)
            cluster.remove_node(node, allow_graceful=False)
            killed.set_result(node)
        except BaseException as error:
            killed.set_exception(error)

    threading.Thread(target=kill, daemon=True).start()
    try:
        there = on_ray(asked_for(source, tmp_path / "ray", "parquet"), progress=lambda *done: seen.append(done))
        assert killed.result(SECONDS) not in cluster.worker_nodes
    finally:
        for end in pipe:
            os.close(end)
    assert there == here
    assert [sum(counts) for counts in zip(*seen, strict=True)] == [23, 2]
    assert digests(tmp_path / "ray") == digests(tmp_path / "here")
    assert {name: (tmp_path / "ray" / name).stat().st_mtime_ns for name in before} == before


def reader_of(pipe: Path) -> int:
    """The process that has it open, other than this one; it is about to, if not yet."""
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):  # gone meanwhile, or not ours to look at
                if int(descriptor.parts[2]) != os.getpid() and descriptor.readlink() == pipe:
                    return int(descriptor.parts[2])
    raise TimeoutError(f"nobody reads {pipe}")


def node_of(process: int, cluster: Any) -> Any:
    """The node whose raylet is an ancestor of a process."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while process not in raylets:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return raylets[process]


@pytest.mark.parametrize("format_name", FORMATS)
def test_an_actor_writes_the_same_files_as_one_machine_in_every_format(format_name: str, tmp_path: Path) -> None:
    from service.bulk.on_ray import ShardActor

    asked = asked_for(tars_of(tmp_path / "source", broken_images()), tmp_path / "here", format_name)
    run_job(asked)
    actor = ShardActor(asked, asked.load().settings, 1)
    for number, (part, offset) in enumerate([(0, 0), (0, 5), (1, 1), (1, 6), (2, 2)]):
        _, files = made_by(actor, number, part, offset)
        assert files == {name: (tmp_path / "here" / name).read_bytes() for name in files}


def test_an_actor_with_different_weights_refuses_to_start(tmp_path: Path) -> None:
    from service.bulk.on_ray import ShardActor

    asked = asked_for(tars_of(tmp_path / "source", broken_images()), tmp_path / "tokens", "jsonl")
    with pytest.raises(BulkError, match="titok-mini-32 differs between nodes"):
        ShardActor(asked, {"tokenizer": {"weights": "0" * 64}}, 1)


def test_an_actor_reports_an_unreadable_source(tmp_path: Path) -> None:
    from service.bulk.on_ray import ShardActor

    asked = asked_for(tars_of(tmp_path / "source", broken_images()), tmp_path / "tokens", "jsonl")
    actor = ShardActor(asked, asked.load().settings, 1)
    (tmp_path / "source" / "set-000.tar").unlink()
    made = actor({name: np.array([0]) for name in ("number", "part", "offset")})
    assert isinstance(pickle.loads(made["result"][0]), FileNotFoundError)  # noqa: S301


def test_missing_devices_and_weights_are_refused(cluster: Any, tmp_path: Path) -> None:
    asked = asked_for(folder_of(tmp_path / "source", broken_images()), tmp_path / "tokens", "jsonl")
    for device, message in (("cuda", "no node of the Ray cluster has a GPU"), ("cuda:1", "not cuda:1: Ray chooses")):
        with pytest.raises(BulkError, match=message):
            on_ray(dataclasses.replace(asked, device=device))
    with pytest.raises(CheckpointError, match="nowhere"):  # what a node says, as it says it
        on_ray(dataclasses.replace(asked, weights=str(tmp_path / "nowhere.safetensors")))
    assert not (tmp_path / "tokens").exists()


def test_without_ray_the_command_names_the_extra_to_install(tmp_path: Path) -> None:
    folder_of(tmp_path / "source", broken_images())
    command = [str(tmp_path / "source"), str(tmp_path / "tokens"), "--ray", "auto"]
    probe = f"import sys; sys.modules['ray'] = None; sys.argv = ['titok', 'tokenize', *{command}]\n"
    probe += "from service.cli.main import main; main()"
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        "the package ray is not installed (extra 'ray'); in a checkout of the repository, run: make install"
        in ended.stderr
    )
