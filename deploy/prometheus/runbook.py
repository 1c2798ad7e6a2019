"""Sets the address of the runbook in the alerts: ``python deploy/prometheus/runbook.py https://wiki.example.com/titok``.

The address is that of docs/operations.md, wherever it is published; each alert adds the name of its section.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["set_runbook"]

_URL = re.compile(r"(?<=runbook_url: )[^#\s]+(?=#)")
_FOLDER = Path(__file__).parent


def set_runbook(address: str, folder: Path = _FOLDER) -> None:
    """Rewrites the alerts and their tests. Raises ``ValueError`` if the address is not absolute."""
    if not re.fullmatch(r"https?://[^#\s]+", address):
        raise ValueError(
            f"{address!r} is not an absolute URL without a fragment, such as https://wiki.example.com/titok"
        )
    for name in ("alerts.yml", "alerts_test.yml"):
        path = folder / name
        path.write_text(_URL.sub(lambda _: address, path.read_text()))


if __name__ == "__main__":
    set_runbook(sys.argv[1])
