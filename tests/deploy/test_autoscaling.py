"""What the autoscaler's queries answer, by Prometheus' own evaluation of made-up series."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import require_program

KEDA = Path(__file__).parents[2] / "deploy" / "kubernetes" / "components" / "keda" / "scaledobject.yaml"
TRIGGERS: dict[str, str] = {
    trigger["name"]: trigger["metadata"]["query"] for trigger in yaml.safe_load(KEDA.read_text())["spec"]["triggers"]
}
POD = 'namespace="titok",instance="{}"'
ANOTHER = 'namespace="other",instance="x"'


def series(name: str, values: str, pod: str = POD.format("a"), labels: str = "") -> dict[str, str]:
    return {"series": f"{name}{{{pod}{labels}}}", "values": values}


def pod(name: str, *, up: str, busy: str, waits: str, slow_waits: str) -> list[dict[str, str]]:
    """A pod with one device: values of each series, one a minute."""
    labels = POD.format(name)
    return [
        series("up", up, labels, ',job="titok"'),
        series("titok_worker_up", up.replace(" 0x", " _x"), labels, ',device="cpu"'),
        series("titok_batch_duration_seconds_sum", busy, labels, ',op="encode",stage="device"'),
        series("titok_batch_duration_seconds_sum", busy, labels, ',op="encode",stage="results"'),
        series("titok_queue_wait_seconds_bucket", waits, labels, ',op="encode",le="2"'),
        series("titok_queue_wait_seconds_bucket", slow_waits, labels, ',op="encode",le="4"'),
        series("titok_queue_wait_seconds_bucket", slow_waits, labels, ',op="encode",le="+Inf"'),
    ]


IDLE = {"busy": "7x10", "waits": "5x10", "slow_waits": "5x10"}
# Busy for 45 of 60 seconds; half of the images wait for up to 4 seconds.
BUSY = {"busy": "0+45x10", "waits": "0+30x10", "slow_waits": "0+60x10"}
GONE = {"busy": "0+45x3 _x7", "waits": "0+30x3 _x7", "slow_waits": "0+60x3 _x7"}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        (pod("a", up="1x10", **IDLE), {"queue-wait": 0, "device-busy": 0}),
        # By the autoscaler divided by the pods: 3.8 s, and 0.75.
        (pod("a", up="1x10", **BUSY), {"queue-wait": 3.8, "device-busy": 0.75}),
        (pod("a", up="1x10", **BUSY) + pod("b", up="1x10", **BUSY), {"queue-wait": 7.6, "device-busy": 1.5}),
        # One of them is too busy to be scraped: the other is taken for both.
        (pod("a", up="1x10", **BUSY) + pod("b", up="1x3 0x7", **GONE), {"queue-wait": 7.6, "device-busy": 1.5}),
        (pod("a", up="1x3 0x7", **GONE), {"queue-wait": None, "device-busy": None}),
        ([series("up", "1x10", ANOTHER, ',job="titok"')], {"queue-wait": None, "device-busy": None}),
        ([], {"queue-wait": None, "device-busy": None}),
    ],
    ids=["idle", "busy", "two busy", "one of two is not scraped", "stale", "another namespace", "nothing"],
)
def test_no_data_is_no_answer_and_an_idle_service_is_zero(
    pods: list[dict[str, str]], expected: dict[str, float | None], tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = [
        {
            "expr": query,
            "eval_time": "10m",
            "exp_samples": [] if expected[name] is None else [{"labels": "{}", "value": expected[name]}],
        }
        for name, query in TRIGGERS.items()
    ]
    test = tmp_path / "test.yml"
    test.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": pods, "promql_expr_test": asked}]}))
    ended = subprocess.run(
        [require_program("promtool"), "test", "rules", test], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
