"""The README pasted into a shell and into Python: its commands work, and print what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.in_process import run_in_process
from tests.programs import require_program

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the README's files."""
    (tmp_path / "docs").symlink_to(PROJECT / "docs")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        shutil.copy(PROJECT / "docs/images/photograph.jpg", tmp_path / f"photos/{number}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(documented: str, printed: str) -> bool:
    """Whether the output is the documented one; ``...`` stands for anything."""
    parts = re.split(r"\.\.\.", documented.strip())
    return re.fullmatch(".*".join(map(re.escape, parts)), printed.strip(), re.DOTALL) is not None


def same(documented: Any, answer: Any) -> bool:
    """Whether a JSON answer is the documented one; a list may end in "..."."""
    if isinstance(documented, dict):
        return documented.keys() == answer.keys() and all(same(documented[key], answer[key]) for key in documented)
    if isinstance(documented, list) and documented[-1] == "...":
        return documented[:-1] == answer[: len(documented) - 1]
    if isinstance(documented, list):
        return len(documented) == len(answer) and all(map(same, documented, answer))
    return bool(documented == answer)


def test_the_curl_lines_work_when_pasted(server: Any, folder: Path) -> None:
    require_program("curl")
    script = "\n".join(block for block in blocks("console") if "curl" in block)
    script = script.replace("http://127.0.0.1:8000", server.url).replace("curl -s", "curl -sS --fail")
    ended = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    answer, end = json.JSONDecoder().raw_decode(ended.stdout)
    (documented,) = map(json.loads, blocks("json"))
    answer["data"][0]["cached"] = False  # another test may have encoded it
    assert same(documented, answer)
    for name, image_format in (("back.jpg", "JPEG"), ("back.png", "PNG"), ("cat.png", "PNG"), ("back.webp", "WEBP")):
        with Image.open(folder / name) as picture:
            assert (picture.format, picture.size) == (image_format, (128, 128))
    assert (folder / "photograph.code").stat().st_size == 48
    (stream,) = blocks("text")
    events = [line.split(": ")[1] for line in stream.splitlines() if line.startswith("event: ")]
    assert events == ["step", "done"]
    assert all(f"event: {event}\n" in ended.stdout[end:] for event in events)


@pytest.mark.parametrize("number", [0, 1], ids=["client", "library"])
def test_the_python_blocks_print_what_their_comments_say(exact_server: Any, folder: Path, number: int) -> None:
    block = blocks("python")[number].replace("http://127.0.0.1:8000", exact_server.url)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", block)


def test_the_commands_print_what_is_shown(folder: Path) -> None:
    text = "\n".join(blocks("console"))
    commands = re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", text, flags=re.MULTILINE)
    assert [command.split()[1] for command, _ in commands] == ["encode", "decode", "generate", "tokenize", "tokens/"]
    for command, documented in commands:
        program, *arguments = shlex.split(command)
        if program == "titok":
            ended = run_in_process(*arguments)
            assert ended.returncode == 0, ended.stderr
            printed = (ended.stdout or ended.stderr).decode()
        else:
            printed = "  ".join(sorted(path.name for path in Path(arguments[0]).iterdir()))
        assert shown(documented, printed), (command, printed)
