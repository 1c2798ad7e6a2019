"""``titok tokenize`` with the shipped checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.in_process import run_in_process

OPTIONS = ["--format", "npy", "--shard-images", "1"]


@pytest.fixture(scope="module")
def source(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photographs in two folders, and two broken files."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(20):
        path = folder / ("even", "odd")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        left = 10 * (number // 4)
        photographs[number % 4].crop((left, left, left + 200, left + 180)).save(path)
    (folder / "even" / "broken.jpg").write_bytes(b"no image")
    (folder / "odd" / "broken.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens of a command that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "tokens"
    assert run_in_process("tokenize", source, folder, *OPTIONS).returncode == 3
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_becomes_the_tokens_that_encode_prints_and_broken_images_are_counted(
    titok: Path, source: Path, tmp_path: Path
) -> None:
    command = [titok, "tokenize", source, tmp_path / "tokens", "--format", "jsonl"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].startswith("20 images tokenized, 2 skipped (see ")
    lines = (tmp_path / "tokens" / "tokens-000000.jsonl").read_text().splitlines()
    tokens = {row["key"]: row["tokens"] for row in map(json.loads, lines)}
    paths = [source / "even" / "00.jpg", source / "odd" / "19.jpg"]
    encoded = run_in_process("encode", *paths)
    for line in map(json.loads, encoded.stdout.splitlines()):
        assert tokens[str(Path(line["image"]).relative_to(source).with_suffix(""))] == line["tokens"]


def interrupted(number: signal.Signals, command: list[str | Path], folder: Path) -> int:
    """The exit status of a command that gets a signal once its first shard is written."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "tokens-000000.npy").exists():
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_was_ended_midway_goes_on_to_the_same_bytes(
    number: signal.Signals, titok: Path, source: Path, whole: Path, tmp_path: Path
) -> None:
    while interrupted(number, [titok, "tokenize", source, tmp_path / "ended", *OPTIONS], tmp_path / "ended") == 3:
        shutil.rmtree(tmp_path / "ended")  # the command ended before the signal reached it
    assert not (tmp_path / "ended" / "manifest.json").exists()
    assert run_in_process("tokenize", source, tmp_path / "ended", *OPTIONS).returncode == 3
    assert contents(tmp_path / "ended") == contents(whole)


def test_one_split_of_a_dataset_is_tokenized_or_none(source: Path, tmp_path: Path) -> None:
    for name, folder in (("train", "even"), ("val", "odd")):
        shutil.copytree(source / folder, tmp_path / "set" / name / "cat", ignore=shutil.ignore_patterns("broken*"))
    shutil.copy(source / "even" / "00.jpg", tmp_path / "set" / "train" / "cat" / "00.seg.png")
    command = ["tokenize", tmp_path / "set", tmp_path / "tokens", "--format", "jsonl"]
    refused = run_in_process(*command)
    assert refused.returncode == 1
    assert (
        "has several splits: train (11), val (10); choose one with --split, or --split all" in refused.stderr.decode()
    )
    assert not (tmp_path / "tokens").exists()
    options = ["--split", "train", "--image-extension", ".JPG", "--no-label"]
    assert run_in_process(*command, *options).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "tokens" / "tokens-000000.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"train/cat/{number:02d}" for number in range(0, 20, 2)]
    assert {row["class_id"] for row in rows} == {None}


@pytest.mark.parametrize("command", ["tokenize", "encode"])
def test_a_folder_without_images_is_an_error_of_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("notes")
    ended = run_in_process(command, tmp_path / "empty", *([tmp_path / "tokens"] if command == "tokenize" else []))
    assert (ended.returncode, ended.stderr.decode()) == (1, f"titok: no images in {tmp_path / 'empty'}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "tokens"], "there is nothing at /nowhere"),
        ([".", "tokens", "--crops", "ten", "--flip"], "leave out --flip"),
        ([".", "tokens", "--device", "abacus"], "'abacus' is not a device"),
        ([".", "tokens", "--tokenizer", "titok-vae"], "no tokenizer is called 'titok-vae'"),
        ([".", "tokens", "--image-column", "image"], "it has no columns"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments: list[str], message: str, source: Path, tmp_path: Path) -> None:
    ended = run_in_process(
        "tokenize", *(source if argument == "." else argument for argument in arguments), cwd=tmp_path
    )
    assert ended.returncode == 1
    assert message in ended.stderr.decode()
