"""The tests that load OpenVINO or ONNX Runtime, in processes of their own.

A process that had loaded both and later closed a browser of Playwright's ended by a segmentation fault in four of five runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parent


@pytest.mark.parametrize("file", ["runtime/check_selection.py", "export/check_onnx_file.py"])
def test_a_runtime_passes_its_tests(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", MODELS / file]
    ended = subprocess.run(command, cwd=MODELS.parents[1], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^\d+ passed", ended.stdout, re.MULTILINE), ended.stdout
