"""The README's curl lines, pasted into a shell, do what the README says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

from tests.programs import require_program

PROJECT = Path(__file__).parents[2]


def curl_lines() -> str:
    blocks = re.findall(r"```console\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    return "\n".join(block for block in blocks if "curl" in block)


def test_the_readmes_curl_lines_work_when_pasted(server: Any, tmp_path: Path) -> None:
    require_program("curl")
    (tmp_path / "docs").symlink_to(PROJECT / "docs")
    script = curl_lines().replace("http://127.0.0.1:8000", server.url).replace("curl -s", "curl -sS --fail")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    # The answers end without a line break, so the echoed code follows the first one directly.
    codes = re.findall(r"[\w-]{64}(?=\n)", ended.stdout)
    assert f'"code":"{codes[0]}"' in ended.stdout
    for name, image_format in (("back.jpg", "JPEG"), ("back.png", "PNG"), ("cat.png", "PNG"), ("back.webp", "WEBP")):
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == (image_format, (128, 128))
    assert (tmp_path / "photograph.code").stat().st_size == 48
    assert '"psnr":' in ended.stdout
    assert "\nevent: done\n" in ended.stdout
