"""Cost and benefit of the code cache: ``make bench-cache``.

- Hit path: requests per second for known images, relative to a bare FastAPI route that reads the same body and answers
  with a constant, on the same uvicorn; with the codes in memory, and in a Redis on this machine without a front cache.
- One client: latency of a hit and of a miss.
- Memory per image in Redis, and lookups in a Redis with a million codes.
- Requests during Redis faults (``cache_faults``).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tests.benchmarks.cache_faults import FaultRow, fault_rows
from tests.benchmarks.cache_hits import CONNECTIONS, IMAGES, ROUNDS, HitPath, OneClient, hit_path, one_client, redis
from tests.benchmarks.cache_memory import Million, bytes_of_a_key, million
from tests.benchmarks.load import h2load_version, require_h2load
from tests.benchmarks.report import OUTPUT, goals_table, machine, markdown, write
from tests.benchmarks.served import DEFAULT_VARIANT

GOALS = {
    "hit / bare route, in memory": ">= 0.75",
    "hit / bare route, Redis": ">= 0.6",
    "bytes of a key and its code": "<= 250",
    "failures under faults": "0",
    "wrong answers under faults": "0",
    "p99 under faults over no cache, ms (worst)": "<= 25",
}


def main() -> None:
    """Prints the tables and writes them, with JSON and a plot."""
    parser = argparse.ArgumentParser(description="Measure cost and benefit of the code cache.")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each measurement of throughput and each round of a fault"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["hits", "rest"], choices=["hits", "rest"], help="'hits' prints the hit path only"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    require_h2load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hits = hit_path(folder, seconds=arguments.seconds)
        if "rest" not in arguments.parts:
            return
        one = one_client(folder)
        key_bytes, image_bytes = bytes_of_a_key(folder)
        many = million(folder, seconds=arguments.seconds)
        faults = fault_rows(folder, seconds=arguments.seconds)
        with redis(folder) as server, server.client() as client:
            redis_version = client.info("server")["redis_version"]
    figures = figures_of(hits, one, faults) | {
        "bytes of a key and its code": key_bytes,
        "bytes of a new image, which takes two keys": image_bytes,
    }
    versions = {
        "h2load": h2load_version().removeprefix("h2load "),
        "redis_server": redis_version,
        "cores": str(len(os.sched_getaffinity(0))),
    }
    document = {
        "machine": machine("fastapi", "uvicorn", "redis", **versions),
        "settings": {"connections": CONNECTIONS, "seconds": arguments.seconds, "rounds": ROUNDS, "images": IMAGES},
        "hits": {"rates": hits.rates, "generator_share": hits.generator_share},
        "one_client_ms": asdict(one),
        "million": asdict(many),
        "faults": [asdict(row) for row in faults],
        "figures": figures,
        "goals": GOALS,
    }
    tables = [goals_table(figures, GOALS), *tables_of(hits, one, many, faults)]
    write("cache", arguments.output, document=document, tables=tables, figure=plot(hits, one, faults))


def figures_of(hits: HitPath, one: OneClient, faults: Sequence[FaultRow]) -> dict[str, float]:
    """Ratios of the hit path and of one client, and the totals of the faults."""
    during_faults = [row for row in faults if not row.fault.startswith("no cache")]
    return {
        "hit / bare route, in memory": hits.over_bare("in memory"),
        "hit / bare route, Redis": hits.over_bare("Redis"),
        "hit / miss, p50, in memory": one.hit_memory / one.miss,
        "hit / miss, p50, Redis": one.hit_redis / one.miss,
        "failures under faults": sum(row.failures for row in during_faults),
        "wrong answers under faults": sum(row.wrong for row in during_faults),
        "p99 under faults over no cache, ms (worst)": max(row.p99 for row in during_faults) - _without_cache(faults),
    }


def tables_of(hits: HitPath, one: OneClient, many: Million, faults: Sequence[FaultRow]) -> list[str]:
    """The results in Markdown."""
    by_server = [
        [server, ", ".join(f"{rate:.0f}" for rate in rates), hits.over_bare(server), hits.generator_share[server]]
        for server, rates in hits.rates.items()
    ]
    latencies = [
        ["miss", one.miss, one.miss_p95],
        ["hit, Redis", one.hit_redis, one.hit_redis_p95],
        ["hit, memory", one.hit_memory, one.hit_memory_p95],
    ]
    memory = [f"{many.codes:,}", f"{many.used_memory:,}", many.bytes_a_code]
    by_fault = [
        [
            *(row.fault, row.requests, row.failures, row.wrong, row.hits, row.p50),
            ", ".join(f"{p99:.1f}" for p99 in sorted(row.p99s)),
            row.p99 - _without_cache(faults),
        ]
        for row in faults
    ]
    return [
        markdown(["hits", "requests/s, by round", "/ bare route", "load generator, share of a core"], by_server),
        markdown(["one client, ms", "p50", "p95"], latencies),
        markdown(
            [
                "codes in Redis",
                "memory used",
                "bytes a code",
                "MGET of 100, ms (p50)",
                "codes/s, MGET",
                "codes/s, HTTP",
            ],
            [[*memory, many.mget_ms, many.codes_by_mget, many.codes_by_http]],
        ),
        markdown(
            ["Redis", "requests", "failures", "wrong", "hits", "p50, ms", "p99, ms, by round", "over no cache, ms"],
            by_fault,
        ),
    ]


def plot(hits: HitPath, one: OneClient, faults: Sequence[FaultRow]) -> Figure:
    """Requests per second of the hit path, latencies of one client, p99 by fault."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    rates, client, late = figure.subplots(1, 3, width_ratios=[2, 2, 3])
    medians = {name: float(np.median(values)) for name, values in hits.rates.items()}
    bars = rates.bar(list(medians), list(medians.values()), color=["tab:gray", "tab:green", "tab:red"])
    rates.bar_label(bars, [f"{hits.over_bare(name):.2f}" for name in medians], fontsize=8)
    rates.set(ylabel="requests/s", title=f"hits, {CONNECTIONS} connections")
    values = [one.miss, one.hit_redis, one.hit_memory]
    bars = client.bar(["miss", "hit, Redis", "hit, memory"], values, color=["tab:blue", "tab:red", "tab:green"])
    client.bar_label(bars, fmt="%.2f", fontsize=8)
    client.set(ylabel="ms, median", title=f"one client, {DEFAULT_VARIANT}")
    late.barh([row.fault for row in faults], [row.p99 for row in faults])
    late.axvline(_without_cache(faults) + 25, color="black", linestyle="dashed", label="no cache + 25 ms")
    late.invert_yaxis()
    late.set(xlabel="ms, p99", title="during Redis faults")
    late.legend(loc="lower right", fontsize=8)
    return figure


def _without_cache(rows: Sequence[FaultRow]) -> float:
    """p99 in ms, the mean of before and after."""
    return float(np.mean([row.p99 for row in rows if row.fault.startswith("no cache")]))


if __name__ == "__main__":
    main()
