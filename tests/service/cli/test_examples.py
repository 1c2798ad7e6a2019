"""The programs in ``docs/examples``, in a small form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from models.data.token_folder import open_tokens
from tests.in_process import run_in_process
from tests.service.bulk.data_sets import folder_of, images

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``tokens_to_images``, whose commands run within this process."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import tokens_to_images

    def titok(*arguments: object) -> None:
        ended = run_in_process(*map(str, arguments))
        assert ended.returncode == 0, ended.stderr.decode()
        printed.append(ended.stdout.decode())

    printed: list[str] = []
    monkeypatch.setattr(tokens_to_images, "titok", titok)
    monkeypatch.setattr(tokens_to_images, "printed", printed, raising=False)
    yield tokens_to_images
    for name in ("gpt", "tokens_to_images"):
        monkeypatch.delitem(__import__("sys").modules, name)


def test_photographs_become_tokens_and_models_of_them_make_images(example: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder_of(tmp_path / "photographs", images())
    out = tmp_path / "out"

    example.run(tmp_path / "photographs", out, minutes=0.01, per_class=2, width=64, features=None)

    tables = [text for text in example.printed if "FID" in text]
    distances = [float(re.findall(r"\| ([\d.]+) ", table)[-1]) for table in tables]
    assert len(distances) == 3
    assert [len(list(open_tokens(out / name).rows())) for name in ("tokens", "samples")] == [230, 6]
