"""Generates the PrometheusRule from ``deploy/prometheus``: ``python deploy/kubernetes/prometheus_rule.py``."""

from __future__ import annotations

from pathlib import Path

import yaml

__all__ = ["PATH", "document"]

PATH = Path(__file__).parent / "components" / "monitoring" / "prometheusrule.yaml"
_RULES = Path(__file__).parents[1] / "prometheus"


def document() -> str:
    """The manifest in YAML."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "titok", "labels": {"app.kubernetes.io/name": "titok"}},
        "spec": {
            "groups": [
                group
                for name in ("recording.yml", "alerts.yml")
                for group in yaml.safe_load((_RULES / name).read_text())["groups"]
            ]
        },
    }
    return "# Generated from deploy/prometheus by `make docs`.\n" + yaml.safe_dump(rule, sort_keys=False, width=120)


if __name__ == "__main__":
    PATH.write_text(document())
