"""The dashboards that are provisioned are those that the code makes, and say what an operator needs."""

from __future__ import annotations

import json
import re
import runpy
import shutil
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


def test_one_address_of_the_runbook_is_set_for_alerts_rules_and_dashboards(tmp_path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    deploy, address = tmp_path / "deploy", "https://wiki.example.com/on-call"
    shutil.copytree(DEPLOY, deploy)
    set_runbook = runpy.run_path(str(deploy / "prometheus" / "runbook.py"))["set_runbook"]
    set_runbook(address, deploy / "prometheus")
    made = [
        *((deploy / "prometheus" / name).read_text() for name in ("alerts.yml", "alerts_test.yml")),
        runpy.run_path(str(deploy / "kubernetes" / "prometheus_rule.py"))["document"](),
        *(text for _, text in runpy.run_path(str(deploy / "grafana" / "dashboards.py"))["documents"]()),
    ]
    for text in made:
        assert set(re.findall(r"(https?://[^\s#]+)#titok", text)) == {address}
    with pytest.raises(ValueError, match="absolute"):
        set_runbook("docs/operations.md", deploy / "prometheus")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_data_source_namespace_and_instance_are_picked(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    pickers = {picker["name"]: picker for picker in dashboard["templating"]["list"]}
    assert pickers.keys() == {"datasource", "namespace", "instance"}
    for name in ("namespace", "instance"):
        # Also where no series has a namespace.
        assert (pickers[name]["allValue"], pickers[name]["current"]["value"]) == (".*", "$__all")
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors
            assert all(selector.startswith('namespace=~"$namespace"') for selector in selectors), target["expr"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_has_a_unit_a_description_and_links_to_sections_that_exist(path: Path) -> None:
    for panel in json.loads(path.read_text())["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"], panel["title"]
        for link in panel.get("links", []):
            page, _, section = link["url"].partition("#")
            assert page.startswith("https://"), "Grafana would look for the page on its own host"
            assert f"\n## {section}\n".lower() in RUNBOOK.lower()
