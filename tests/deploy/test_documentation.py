"""The documentation as a whole: its links, and the types of its Python blocks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), PROJECT / "service/client/README.md"]

# Names that blocks use without defining them.
PRELUDE = """
from pathlib import Path
import numpy as np
from service.client import TiTokClient
url = "http://127.0.0.1:8000"
titok = TiTokClient(url)
images = np.zeros((2, 128, 128, 3), np.uint8)
"""
# ``backward`` of torch has no types; a page's block may import a file of the reader's.
OPTIONS = ("--no-warn-unreachable", "--allow-untyped-calls", "--ignore-missing-imports")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


def test_the_types_of_all_python_blocks_are_right(tmp_path: Path) -> None:
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for number, block in enumerate(blocks):
            code = (PRELUDE + block).replace("titok_client", "service.client")
            (tmp_path / f"{page.stem.lower().replace('-', '_')}_{number}.py").write_text(code, encoding="utf-8")
    assert len(list(tmp_path.iterdir())) > 5
    command = [sys.executable, "-m", "mypy", *OPTIONS, *sorted(tmp_path.iterdir())]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout
