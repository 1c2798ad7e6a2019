"""Replicas can be replaced while they are used. The long run: ``rolling.py``."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.load_balancer import CONFIGURATION
from tests.e2e.rolling import run_rolling
from tests.programs import require_program


def test_the_shipped_configuration_is_one_that_haproxy_takes_without_a_warning() -> None:
    ended = subprocess.run(
        [require_program("haproxy"), "-c", "-f", CONFIGURATION], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stdout + ended.stderr


@pytest.mark.slow
def test_two_replicas_are_replaced_and_no_request_fails(jpeg: bytes) -> None:
    require_program("haproxy")
    outcome = run_rolling([jpeg], rounds=1)
    assert outcome.failed == []
    assert outcome.exits == [0, 0]
    assert all(outcome.answered.values())
    assert all(outcome.answered_in_replacement)
    assert all(outcome.by_replica.values())
