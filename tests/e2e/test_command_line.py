"""The ``titok`` command without a service."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from service.cli.images import with_codes_as_arguments
from service.cli.main import app
from service.version import VERSION
from tests.in_process import run_in_process

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run() -> Run:
    return run_in_process


def test_encode_prints_json_lines_and_decode_writes_an_image(run: Run, jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg)
    ended = run("encode", path, "-", stdin=jpeg)
    first, second = (json.loads(line) for line in ended.stdout.splitlines())
    assert first["tokens"] == second["tokens"]
    assert first["original_size"] == {"width": 512, "height": 512}
    by_code, by_tokens = tmp_path / "code.png", tmp_path / "tokens.png"
    assert run("decode", first["code"], by_code).returncode == 0
    assert run("decode", ",".join(map(str, first["tokens"])), by_tokens).returncode == 0
    assert by_code.read_bytes() == by_tokens.read_bytes()


def test_equal_seeds_generate_equal_images(run: Run, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        assert run("generate", "cat", tmp_path / name, "--seed", "3", "--preset", "fast").returncode == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    piped = run("generate", "-", "-", "--seed", "3", "--preset", "fast")
    assert Image.open(io.BytesIO(piped.stdout)).format == "PNG"
    assert b"seed 3" in piped.stderr


def test_samples_are_those_of_generate_and_their_tokens_are_detokenized(run: Run, tmp_path: Path) -> None:
    made = run(
        *(
            "sample",
            tmp_path / "samples",
            "--per-class",
            "2",
            "--classes",
            "cat;dog",
            "--seed",
            "3",
            "--preset",
            "fast",
        ),
        *("--images", "folder", "--tokens", "npy"),
    )
    assert (made.returncode, made.stderr.decode().split(" in ")[0]) == (0, "4 images generated, 1 shards")
    assert run("generate", "cat", tmp_path / "cat.png", "--seed", "4", "--preset", "fast").returncode == 0
    (tokens,) = np.load(tmp_path / "samples" / "tokens-000000.npy")[1:2].tolist()
    assert run("decode", ",".join(map(str, tokens)), tmp_path / "decoded.png").returncode == 0
    assert (tmp_path / "decoded.png").read_bytes() == (tmp_path / "cat.png").read_bytes()
    back = run("detokenize", tmp_path / "samples", tmp_path / "images", "--format", "folder")
    assert (back.returncode, back.stderr.decode().split(" in ")[0]) == (0, "4 images decoded, 1 shards")
    for path in (tmp_path / "samples").rglob("*.png"):
        again = tmp_path / "images" / path.relative_to(tmp_path / "samples")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sample", "samples", "--per-class", "1", "--classes", "cats"],
            "No class is called 'cats'. Did you mean cat?",
        ),
        (["sample", "samples", "--per-class", "1", "--classes", "43"], "There is no class 43; ids are 0..42."),
        (["sample", "samples", "--per-class", "1", "--preset", "best"], "preset 'best' is unknown"),
        (["detokenize", "nothing", "images"], "at nothing: expected tokens in one format"),
    ],
)
def test_wrong_samples_and_tokens_are_named(arguments: list[str], message: str, run: Run) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert message in ended.stderr.decode()


def test_a_generator_of_ones_own_generates_with_a_tokenizer_of_ones_own(run: Run, tmp_path: Path) -> None:
    tokenizer = BUNDLED_WEIGHTS / DEFAULT_VARIANT
    weights = ("--tokenizer", "mine", "--weights", tokenizer, "--generator-weights", f"{tokenizer}-generator")
    options = ("--seed", "3", "--preset", "fast", "--json")
    mine, shipped = (
        json.loads(run("generate", "cat", tmp_path / name, *options, *more).stdout)
        for name, more in (("mine.png", weights), ("shipped.png", ()))
    )
    assert (mine["model"], mine["code"]) == ("mine", shipped["code"])
    made = run("sample", tmp_path / "samples", "--per-class", "1", "--classes", "cat", "--images", "none", *weights)
    assert made.returncode == 0, made.stderr


def test_several_images_are_generated_as_json_lines(run: Run, tmp_path: Path) -> None:
    several = run("generate", "cat", tmp_path / "cat.png", "-n", "2", "--steps", "3", "--seed", "3", "--json")
    first, second = (json.loads(line) for line in several.stdout.splitlines())
    assert [first["seed"], second["seed"]] == [3, 4]
    assert first["settings"]["steps"] == 3
    assert second["image"] == str(tmp_path / "cat-1.png")
    assert run("decode", second["code"], tmp_path / "decoded.png").returncode == 0
    assert (tmp_path / "decoded.png").read_bytes() == (tmp_path / "cat-1.png").read_bytes()
    alone = run("generate", "cat", tmp_path / "alone.png", "--steps", "3", "--seed", "4")
    assert alone.stdout.decode() == f"seed 4, code {second['code']}\n"


def test_a_code_that_begins_with_a_hyphen_is_no_option(run: Run, tmp_path: Path) -> None:
    code = "-h" + "A" * 62
    assert run("decode", code, tmp_path / "one.png").returncode == 0
    assert run("decode", "--tokenizer", "titok-mini-32", code, tmp_path / "two.png").returncode == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert b"ends inside a token" in run("decode", "-AA", tmp_path / "two.png").stderr
    assert b"No such option" in run("decode", "--tokeniser", "x", code, tmp_path / "two.png").stderr


def test_models_lists_the_variants_in_aligned_columns(run: Run) -> None:
    header, *rows = run("models").stdout.decode().splitlines()
    assert all(row[header.index("weights") - 1] == " " != row[header.index("weights")] for row in rows)
    listed = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert [row.split()[0] for row in rows] == list(listed)
    assert (listed["titok-l-32"]["num_tokens"], listed["titok-l-32"]["rfid"]) == (32, 2.21)


def test_info_describes_a_tokenizer(run: Run) -> None:
    facts = json.loads(run("info", "titok-mini-32").stdout)
    assert (facts["num_tokens"], facts["codebook_size"], facts["image_size"]) == (32, 4096, 128)
    assert run("info").stdout == run("info", "--tokenizer", "titok-mini-32").stdout


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        yield from commands(command, (*path, name)) if nested else [((*path, name), command)]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands(typer.main.get_command(app))]
)
def test_the_examples_of_a_help_text_are_accepted(path: tuple[str, ...], command: Any) -> None:
    examples = re.findall(r"^ *(?:\w+=\S+ )?titok (.+)$", command.help, re.MULTILINE)
    assert examples
    for example in examples:
        arguments = shlex.split(re.split(r" [|>&]", example)[0])
        assert tuple(arguments[: len(path)]) == path
        command.make_context(" ".join(path), with_codes_as_arguments(arguments)[len(path) :], resilient_parsing=False)


def test_broken_images_of_several_are_skipped_and_named(run: Run, jpeg: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(jpeg)
    ended = run("encode", tmp_path, "/nowhere.jpg")
    assert ended.returncode == 3
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["image"] == str(tmp_path / "b.jpg")
    assert f"{tmp_path / 'a.jpg'}: " in ended.stderr.decode()
    assert b"cannot read /nowhere.jpg" in ended.stderr
    assert b"1 images encoded, 2 skipped" in ended.stderr


def test_the_installed_command_shows_its_version(titok: Path) -> None:
    ended = subprocess.run([titok, "--version"], capture_output=True, text=True, timeout=120)
    assert ended.stdout == f"titok {VERSION}\n"


@pytest.mark.parametrize(
    "command", [[], ["serve"], ["encode"], ["cache", "purge"], ["keys", "new"], ["train", "tokenizer"]]
)
def test_h_shows_help(run: Run, command: list[str]) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert short.returncode == 0, short.stderr
    assert short.stdout == long.stdout
    assert " ".join(["Usage: titok", *command]) in short.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "EMPTY"], "no images in EMPTY"),
        (["generate", "cat", "-", "-n", "2"], "several images cannot be written to standard output"),
        (["generate", "cat", "x.png", "--steps", "1000"], "out of range 1..256"),
        (["info", "titok-b-64", "--tokenizer", "titok-l-32"], "two tokenizers are named"),
        (["cache", "stats"], "no Redis is named: give --url redis://"),
        (["cache", "warm", str(Path(__file__).parents[2] / "docs/images")], "--redis-url redis://"),
        (["encode", "/nowhere.jpg"], "cannot read /nowhere.jpg: No such file or directory"),
        (["encode", __file__], "is not an image: it looks like text"),
        (
            ["decode", "AAAAA", "x.png"],
            "a code of 5 characters ends inside a token: the first 2 have 4 characters, the first 3 have 6",
        ),
        (["decode", ",".join("1" * 33), "x.png"], "1 to 32 token ids, not 33"),
        (["decode", "1,x", "x.png"], "whole numbers"),
        (["decode", "A" * 64, "x.gif"], "does not end in .png, .jpg or .webp"),
        (["generate", "catt", "x.png"], "Did you mean"),
        (["generate", "cat", "x.png", "--preset", "best"], "published, demo, fast"),
        (["info", "--tokenizer", "titok-x"], "no tokenizer is called 'titok-x'"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run(*(argument.replace("EMPTY", str(tmp_path)) for argument in arguments))
    message = message.replace("EMPTY", str(tmp_path))
    assert ended.returncode == 1
    shown = " ".join(ended.stderr.decode().split())
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "url", ["redis://:s3cret#1@h", "redis+sentinel://s3cret", "redis://h:s3cret", "redis://h?s3cret=1"]
)
def test_serve_refuses_a_wrong_redis_url_without_a_part_of_it(url: str) -> None:
    ended = run_in_process("serve", TITOK_REDIS_URL=url)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"titok: redis_url: ")
    assert b"s3cret" not in ended.stdout + ended.stderr
