"""The ``titok`` command within the process of the tests: as a process of its own it takes seconds of CPU time to start."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.cli.main import main

__all__ = ["run_in_process"]


def run_in_process(
    *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[bytes]:
    """What the installed command does with these arguments and ``TITOK_...`` variables; any other exception is raised."""
    streams = {name: io.BytesIO(stdin if name == "stdin" else b"") for name in ("stdin", "stdout", "stderr")}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("TITOK_"):
                patch.delenv(name)
        for name, value in {"TITOK_RUNTIME": "torch", **settings}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", ["titok", *map(str, arguments)])
        for name, stream in streams.items():
            patch.setattr(sys, name, io.TextIOWrapper(stream, write_through=True))
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            torch.set_num_threads(threads)
        output, errors = (streams[name].getvalue() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, status, output, errors)
