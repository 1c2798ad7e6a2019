"""The parity table: every comparison with the published implementation leaves a row, printed at the end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list[tuple[str, str, float, int, int]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def record_parity(request: pytest.FixtureRequest) -> Callable[..., float]:
    """Notes a deviation (or a number of equal ids among those compared) and gives the deviation back."""

    def record(case: str, quantity: str, deviation: float, equal: int = 0, compared: int = 0) -> float:
        request.config.stash[ROWS].append((case, quantity, deviation, equal, compared))
        return deviation

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("parity with the published implementation")
    terminalreporter.write_line(f"{'case':<36} {'quantity':<24} {'deviation':>10} {'ids equal / compared':>22}")
    for case, quantity, deviation, equal, compared in rows:
        shown = "" if math.isnan(deviation) else f"{deviation:.1e}"
        ids = f"{equal} / {compared}" if compared else ""
        terminalreporter.write_line(f"{case:<36} {quantity:<24} {shown:>10} {ids:>22}")
