"""The long run. Prints what came of it, and writes ``fuzz.md`` and ``fuzz.json``::

python -m tests.fuzz --images 50000 --requests 5000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from tests.e2e.conftest import Server, end, start_server
from tests.fuzz.hostile import fuzz_bombs, fuzz_split_headers
from tests.fuzz.images import Tally, fuzz_decoding, fuzz_http
from tests.fuzz.memory import memory_of
from tests.fuzz.requests import KEY, SETTINGS, fuzz_requests
from tests.fuzz.seeds import seeds

OUTPUT = Path(__file__).parents[2] / "docs" / "benchmarks"
MiB = 1 << 20
_EXAMPLES = 40  # of an operation and a round; after each round the server's memory is looked at
_HTTP_SHARE = 50  # one in so many images is also sent through HTTP


@dataclass
class Requests:
    """What came of the requests: Schemathesis's, and those with damaged images and codes."""

    statuses: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    resident: list[dict[str, int]] = field(default_factory=list)
    restarts: int = 0
    seconds: float = 0.0

    @property
    def server_errors(self) -> int:
        """Answers of 500 and above, and requests without an answer."""
        return sum(count for name, count in self.statuses.items() if name.rpartition(" ")[2].startswith(("5", "none")))


def run_requests(count: int, http_images: int, *, first_seed: int, folder: Path) -> Requests:
    """At least ``count`` requests of Schemathesis, after ``http_images`` damaged images, damaged codes, JSON bombs, and
    requests in pieces.
    """
    outcome, begin = Requests(), time.monotonic()
    server = start_server(**SETTINGS)
    try:
        server.wait_until_ready()
        pids = server.pids()
        with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=60) as client:
            outcome.statuses, outcome.failures = fuzz_http(
                client, http_images, first_seed=first_seed, packed_codes=packed_codes(client), keep=folder / "failures"
            )
            for statuses, failures in (
                fuzz_bombs(client, http_images, first_seed=first_seed, size=16 * MiB),
                fuzz_split_headers(
                    (client.base_url.host, client.base_url.port or 80),
                    http_images,
                    first_seed=first_seed,
                    image=seeds()["jpeg"],
                    key=KEY,
                ),
            ):
                outcome.statuses += statuses
                outcome.failures += failures
        outcome.resident.append(_resident(server))
        made = 0
        while made < count:
            number = first_seed + len(outcome.seeds)
            found = fuzz_requests(server.url, examples=_EXAMPLES, first_seed=number, folder=folder)
            made += found.requests
            outcome.seeds.append(number)
            outcome.statuses += found.statuses
            outcome.excused += found.excused
            outcome.failures += found.failures
            outcome.resident.append(_resident(server))
            print(f"{made} requests, {_resident(server)}", file=sys.stderr, flush=True)
            if not found.requests:
                break
        outcome.restarts = len(set(server.pids()) - set(pids))
    finally:
        end(server)
    outcome.seconds = time.monotonic() - begin
    return outcome


def packed_codes(client: httpx.Client) -> dict[str, bytes]:
    """Files of packed codes, of one image and of several."""
    pictures = [seeds()[name] for name in ("jpeg", "png-RGB", "webp")]
    files = [("image", (f"{index}.bin", picture)) for index, picture in enumerate(pictures)]
    headers = {"Accept": PACKED_CODES}
    one = client.post("/v1/encode", content=pictures[0], headers={**headers, "Content-Type": "image/jpeg"})
    many = client.post("/v1/encode", files=files, headers=headers)
    return {"one": one.raise_for_status().content, "many": many.raise_for_status().content}


def _resident(server: Server) -> dict[str, int]:
    """MiB of each process of a server."""
    children = {child["name"]: child["pid"] for child in server.health()["processes"]}
    return {name: memory_of(pid) // MiB for name, pid in {"supervisor": server.process.pid, **children}.items()}


def tables(images: Tally, requests: Requests) -> str:
    """What is told in Markdown."""
    mib = [value / MiB for value in images.resident]
    first, last = requests.resident[0], requests.resident[-1]
    total = requests.statuses.total()
    refused = sum(count for name, count in images.outcomes.items() if not name.startswith("200"))
    rows = [
        ["inputs", images.images, total],
        ["answered with 2xx / images decoded", images.images - refused, _count(requests.statuses, "2")],
        ["refused with 4xx", refused, _count(requests.statuses, "4")],
        ["500 and above, or no answer", 0 if not images.failures else "see failures", requests.server_errors],
        ["crashes", images.crashes, requests.restarts],
        ["failures", len(images.failures), len(requests.failures)],
        ["MiB resident, in the beginning", f"{mib[0]:.0f}", _told(first)],
        ["MiB resident, in the end", f"{mib[-1]:.0f}", _told(last)],
        ["seconds", round(images.seconds), round(requests.seconds)],
    ]
    facts = f"slowest image {images.slowest_seconds:.2f} s, largest peak {images.largest_peak / MiB:.0f} MiB, "
    facts += f"at most {images.most_over_reserved / MiB:.1f} MiB more than was reserved"
    outcomes = [[name, count] for name, count in images.outcomes.most_common()]
    return "\n\n".join(
        [
            _table(["", "images", "requests"], rows),
            f"Images: {facts}.",
            _table(["outcome of an image", "count"], outcomes),
            _table(*_by_operation(requests.statuses)),
        ]
    )


def _count(statuses: Counter[str], digit: str) -> int:
    return sum(count for name, count in statuses.items() if name.rpartition(" ")[2].startswith(digit))


def _told(resident: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in resident.items())


def _by_operation(statuses: Counter[str]) -> tuple[list[str], list[list[object]]]:
    """A row for each operation, a column for each status; methods that no operation has are one row."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, count in statuses.items():
        operation, _, status = name.rpartition(" ")
        counts["methods that there are not" if status == "405" else operation][status] += count
    columns = sorted({status for row in counts.values() for status in row})
    rows: list[list[object]] = [
        [name, *(counts[name][status] or "" for status in columns)]
        for name in sorted(counts, key=lambda n: n.split()[::-1])
    ]
    return ["operation", *columns], rows


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> int:
    """1 if anything failed."""
    parser = argparse.ArgumentParser(description="Damaged images, and requests made from the OpenAPI document.")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each next one has the next")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="for what fails, and Schemathesis's log")
    arguments = parser.parse_args()
    requests = run_requests(
        arguments.requests, arguments.images // _HTTP_SHARE, first_seed=arguments.seed, folder=arguments.work
    )
    images = fuzz_decoding(arguments.images, first_seed=arguments.seed, keep=arguments.work / "failures")
    packages = {name: version(name) for name in ("pillow", "schemathesis", "hypothesis")}
    document: dict[str, Any] = {
        "seed": arguments.seed,
        "python": platform.python_version(),
        "packages": packages,
        "settings": SETTINGS,
        "images": vars(images),
        "requests": {**vars(requests), "server_errors": requests.server_errors},
    }
    facts = ", ".join(f"{name} {number}" for name, number in packages.items())
    text = f"Seed {arguments.seed}; {facts}.\n\n{tables(images, requests)}\n"
    print(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "fuzz.md").write_text(text)
    (arguments.output / "fuzz.json").write_text(json.dumps(document, indent=1) + "\n")
    failures = [*images.failures, *requests.failures]
    print(*failures, sep="\n", file=sys.stderr)
    return int(bool(failures or images.crashes or requests.restarts or requests.server_errors))


if __name__ == "__main__":
    sys.exit(main())
