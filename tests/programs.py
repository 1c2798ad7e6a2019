"""Programs that tests start. Where one is not installed, its tests are skipped and counted at the end of the run."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["pytest_terminal_summary", "require_program"]

# What PyPI packages bring (kubectl) stands beside the interpreter.
# Debian keeps programs that only podman calls in the last two.
_PATH = os.pathsep.join(
    (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/libexec/podman", "/usr/lib/podman")
)


def require_program(name: str) -> str:
    """The program's path. Without it the test is skipped, or fails where ``CI=true``: there nothing may be missing."""
    if path := shutil.which(name, path=_PATH):
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed, see requirements/programs")
    pytest.skip(f"needs {name}")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after pytest's own summary
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Prints how many tests were not run, and what each needs."""
    yield
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ())]
    needs = Counter(match[1] for reason in reasons if (match := re.fullmatch(r"Skipped: needs (.+)", reason)))
    if needs:
        terminalreporter.section("not run")
        for need, count in needs.most_common():
            terminalreporter.write_line(f"not run: {count} test{'s need' if count > 1 else ' needs'} {need}")
