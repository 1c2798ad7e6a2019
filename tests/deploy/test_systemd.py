"""The unit for a machine without containers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from service.settings import Settings
from tests.programs import require_program

UNIT = (Path(__file__).parents[2] / "deploy" / "systemd" / "titok.service").read_text()
INSTALLED = "/opt/titok/bin/titok"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = require_program("systemd-analyze")
    unit = tmp_path / "titok.service"
    unit.write_text(UNIT.replace(INSTALLED, "/bin/true"))
    checked = subprocess.run([program, "verify", unit], capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("health", "status"), [("true", 0), ("false", 1)])
def test_the_start_ends_when_the_service_is_ready_or_has_ended(health: str, status: int) -> None:
    [command] = re.findall(r"^ExecStartPost=/bin/sh -c '(.+)'$", UNIT, re.MULTILINE)
    ended = subprocess.Popen(["true"])
    ended.wait()
    script = command.replace(f"{INSTALLED} health", health).replace("${MAINPID}", str(ended.pid))
    assert subprocess.run(["sh", "-c", script], timeout=60).returncode == status


def test_it_restarts_within_bounds_and_is_active_when_the_service_is_ready() -> None:
    options = dict(re.findall(r"^(\w+)=(.+)$", UNIT, re.MULTILINE))
    assert options["ExecStart"] == f"{INSTALLED} serve"
    assert f"{INSTALLED} health" in options["ExecStartPost"]
    assert options["Restart"] == "always"
    assert {"StartLimitBurst", "MemoryMax", "LimitNOFILE"} <= options.keys()
    settings = Settings()
    assert int(options["TimeoutStopSec"]) > settings.shutdown_delay + settings.drain_seconds + 15
