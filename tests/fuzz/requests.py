"""Requests made from the OpenAPI document, to a real server: Schemathesis with every check on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.fuzz.seeds import seeds

__all__ = ["KEY", "SETTINGS", "Outcome", "fuzz_requests"]

KEY = "a-key-for-fuzzing"
SETTINGS = {
    "api_keys": KEY,
    "max_generate": "4",
    "max_images": "8",
    "max_batch_size": "4",
    "threads": "1",
    "access_log": "false",
}
"""Of the server under test: every route asks for a key, and no single request takes long."""


@dataclass(frozen=True)
class Outcome:
    """Statuses by operation, refusals that no schema could have told by their kind, and what Schemathesis says failed."""

    statuses: Counter[str]
    excused: Counter[str]
    failures: list[str]

    @property
    def requests(self) -> int:
        return self.statuses.total()


def fuzz_requests(
    url: str, *, examples: int, first_seed: int, phases: str = "examples,coverage,fuzzing,stateful", folder: Path
) -> Outcome:
    """Up to ``examples`` requests for each operation in the phases that make them at random; other phases make as many as
    there is to try. The log and the counts lie in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally = folder / "tally.json"
    tally.unlink(missing_ok=True)
    picture = seeds()["jpeg"]
    answer = httpx.post(f"{url}/v1/encode", content=picture, headers={"X-API-Key": KEY, "Content-Type": "image/jpeg"})
    answer.raise_for_status()
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", Path(__file__).with_name("schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--checks", "all", "--phases", phases),
            *("--max-examples", str(examples), "--seed", str(first_seed), "--no-color"),
        ],
        cwd=root,
        env={
            **os.environ,
            "TITOK_FUZZ_KEY": KEY,
            "TITOK_FUZZ_TALLY": str(tally),
            "TITOK_FUZZ_DIGEST": hashlib.sha256(picture).hexdigest(),
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60 + 30 * examples,
    )
    (folder / "schemathesis.log").write_text(run.stdout + run.stderr)
    failures = [*re.findall(r"^- ST.*", run.stdout, re.MULTILINE)]
    if run.returncode and not failures:
        failures.append(f"Schemathesis ended with {run.returncode}: {(run.stdout + run.stderr)[-2000:]}")
    counts = json.loads(tally.read_text()) if tally.exists() else {"statuses": {}, "excused": {}}
    return Outcome(Counter(counts["statuses"]), Counter(counts["excused"]), failures)
