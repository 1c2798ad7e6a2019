"""The ``titok`` command without a service."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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


def test_info_lists_the_variants_and_describes_one(run: Run) -> None:
    assert b"titok-l-32" in run("info").stdout
    facts = json.loads(run("info", "--tokenizer", "titok-mini-32").stdout)
    assert (facts["num_tokens"], facts["codebook_size"], facts["image_size"]) == (32, 4096, 128)


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
        (["encode", "/nowhere.jpg"], "cannot read /nowhere.jpg: No such file or directory"),
        (["encode", __file__], "is not an image: it looks like text"),
        (["decode", "AAAA", "x.png"], "64 characters, not 4"),
        (["decode", "1,2", "x.png"], "32 token ids, not 2"),
        (["decode", "1,x", "x.png"], "whole numbers"),
        (["decode", "A" * 64, "x.gif"], "does not end in .png, .jpg or .webp"),
        (["generate", "catt", "x.png"], "Did you mean"),
        (["generate", "cat", "x.png", "--preset", "best"], "published, demo, fast"),
        (["info", "--tokenizer", "titok-x"], "no tokenizer is called 'titok-x'"),
    ],
)
def test_errors_are_one_line(run: Run, arguments: list[str], message: str) -> None:
    ended = run(*arguments)
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
