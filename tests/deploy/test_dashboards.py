"""The dashboards that are provisioned are those that the code makes, and say what an operator needs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
RUNBOOK = (DEPLOY.parent / "docs" / "operations.md").read_text()
FILES = sorted((DEPLOY / "grafana" / "json").glob("*.json"))


def test_the_files_are_what_the_code_makes() -> None:
    pytest.importorskip("grafana_foundation_sdk")
    made = dict(runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))["documents"]())
    assert sorted(made) == FILES
    for path, document in made.items():
        assert path.read_text() == document, "run: make docs"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_has_a_unit_a_description_and_links_to_sections_that_exist(path: Path) -> None:
    for panel in json.loads(path.read_text())["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"], panel["title"]
        for link in panel.get("links", []):
            page, _, section = link["url"].partition("#")
            assert page == "docs/operations.md"
            assert f"\n## {section}\n".lower() in RUNBOOK.lower()
