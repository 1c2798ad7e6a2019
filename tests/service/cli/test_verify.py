import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from models.checkpoints.bundled import BUNDLED_WEIGHTS
from models.verification import KNOWN_TOKENS, KnownTokens
from service.cli.main import app

NAME = "titok-mini-32"
SHA256 = hashlib.sha256((BUNDLED_WEIGHTS / NAME / "model.safetensors").read_bytes()).hexdigest()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", *arguments])
    return result.exit_code, result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        ([], 3, "loads; not proven: no published ids for this variant: pass --sha256"),
        (["--sha256", SHA256], 0, "proven: the file has the given SHA-256"),
        (["--sha256", "0" * 64], 1, "NOT the published checkpoint: the file's SHA-256 is"),
    ],
)
def test_the_exit_code_is_the_verdict(arguments: list[str], code: int, verdict: str) -> None:
    ended, output = run(NAME, *arguments)
    assert ended == code
    last = output.splitlines()[-1]
    assert last.startswith("verdict")
    assert verdict in last
    assert f"SHA-256 {SHA256}" in output


def test_json_has_the_same_content_as_the_lines() -> None:
    code, output = run(NAME, "--json", "--sha256", SHA256)
    facts = json.loads(output)
    assert code == 0
    assert (facts["verdict"], facts["sha256"], facts["finite"]) == ("proven", SHA256, True)
    assert facts["file_bytes"] == (BUNDLED_WEIGHTS / NAME / "model.safetensors").stat().st_size


def test_each_image_and_each_other_id_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (128, 128), (90, 120, 30)).save(tmp_path / "plain.png")
    digest = hashlib.sha256((tmp_path / "plain.png").read_bytes()).hexdigest()
    known = KnownTokens(image="plain.png", sha256=digest[:16], ids=(0,) * 32)
    missing = KnownTokens(image="away.png", sha256="0" * 16, ids=(0,) * 32)
    monkeypatch.setitem(KNOWN_TOKENS, NAME, (known, missing))
    code, output = run(NAME, "--images", str(tmp_path))
    assert code == 1
    assert output.count("published 0, ") >= 31
    assert "away.png                     cannot be read: No such file or directory" in output
