"""The health document of the whole service, merged from those of its front ends (``service/api/health.py``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.processes.child import Child

# The states of an engine and of the API keys, best first.
_STATES = ("ready", "starting", "failed", "draining", "stopped")
_KEY_STATES = ("ok", "stale", "unreadable")


def service_health(front_ends: Sequence[Child], workers: Mapping[str, Child], *, draining: bool) -> dict[str, Any]:
    """Merges the documents of the front ends: the status is the worst of those that accept connections, because a client
    may reach any of them; counters are sums; cache, rates and metrics are those of a front end where they fail.
    ``workers`` are by device.
    """
    children = (*front_ends, *workers.values())
    documents = [child.status["health"] for child in front_ends if child.status.get("health")]
    accepting = [child.status["health"] for child in front_ends if child.status.get("is_accepting")]
    by_state = sorted(accepting or documents, key=lambda document: _STATES.index(document["status"]))
    best, worst = (by_state[0], by_state[-1]) if by_state else ({}, {})
    status, reason = worst.get("status", "starting"), worst.get("reason", "the front ends are being started")
    if draining:
        status, reason = "draining", "the service is shutting down"
    elif status != "ready":
        dead = [one for one in children if one.state == "restarting" and str(one.reason) not in reason]
        reason = "; ".join([reason, *(f"{one.name}: {one.reason}" for one in dead)])
    return dict(best) | {
        "status": status,
        "reason": reason,
        "requests": _sum(document["requests"] for document in documents),
        "lanes": _sum_lanes(document["lanes"] for document in documents),
        "api_keys": max((document["api_keys"] for document in documents), key=_KEY_STATES.index, default="ok"),
        "cache": _worst(document["cache"] for document in documents),
        "rates": _worst(document["rates"] for document in documents),
        "metrics": _worst(document["metrics"] for document in documents),
        "device": ", ".join(workers),
        "processes": [_describe(child) for child in children],
    }


def _worst(documents: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """That of a front end for which something fails, if there is one."""
    return max(documents, key=lambda document: document["status"] == "failing", default={})


def _sum_lanes(snapshots: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    by_lane: dict[str, list[Mapping[str, int]]] = {}
    for snapshot in snapshots:
        for lane, figures in snapshot.items():
            by_lane.setdefault(lane, []).append(figures)
    return {lane: _sum(figures) for lane, figures in by_lane.items()}


def _sum(documents: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for document in documents:
        total.update(document)
    return dict(total)


def _describe(child: Child) -> dict[str, Any]:
    details = {name: value for name, value in child.status.items() if name not in ("state", "reason", "health")}
    return {
        "name": child.name,
        "pid": child.pid,
        "state": child.state,
        "reason": child.reason,
        "uptime_seconds": round(child.uptime_seconds, 1),
        "restarts": child.restarts,
        "last_death": child.last_death,
    } | details
