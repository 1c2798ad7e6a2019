"""``titok export``: files, comparison with PyTorch, and messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.cli.options import CommandError


def export(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout.splitlines()


def test_the_shipped_encoder_is_exported_and_compared(tmp_path: Path) -> None:
    code, lines = export("--output", str(tmp_path), "--part", "encoder", "--verify")
    path = tmp_path / "titok-mini-32-encoder-float32.onnx"
    assert lines[:3] == [
        f"{path}  {path.stat().st_size:,} bytes",
        "images     4",
        "encoder    128 of 128 ids equal, 0 others within rounding",
    ]
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "bfloat16"], "--dtype 'bfloat16' cannot be exported: choose float32 or float16"),
        (["--part", "head"], "--part 'head' is unknown: choose encoder, decoder, generator"),
        (["--part", "decoder", "--output", "/proc/exported"], "cannot write into /proc/exported: "),
    ],
)
def test_a_wrong_option_has_a_message(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=f"^{message}"):
        export(*arguments)
