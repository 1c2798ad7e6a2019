"""Generates the JSON of the Grafana dashboards: ``python deploy/grafana/dashboards.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import heatmap, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["LANES", "documents"]

LANES = ("encode", "decode", "generate")
FOLDER = Path(__file__).parent / "json"
_RUNBOOK = "docs/operations.md"
_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A panel with its queries by legend. ``alert`` names the runbook section that it links to."""

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    alert: str | None = None
    is_heatmap: bool = False

    def builder(self) -> timeseries.Panel | heatmap.Panel:
        panel: timeseries.Panel | heatmap.Panel = heatmap.Panel() if self.is_heatmap else timeseries.Panel()
        panel.title(self.title).unit(self.unit).description(self.description).datasource(_PROMETHEUS).span(12).height(8)
        for index, (legend, expression) in enumerate(self.queries.items()):
            query = Dataquery().ref_id(chr(ord("A") + index)).expr(expression).legend_format(legend)
            panel.with_target(query.format(PromQueryFormat.HEATMAP) if self.is_heatmap else query)
        if self.alert is not None:
            link = DashboardLink(f"Runbook: {self.alert}").type(DashboardLinkType.LINK)
            panel.links([link.url(f"{_RUNBOOK}#{self.alert.lower()}")])
        return panel


def _quantiles(metric: str, matchers: str = "") -> dict[str, str]:
    return {
        f"p{round(100 * quantile)}": f"histogram_quantile({quantile}, "
        f"sum by (le) (rate({metric}_bucket{matchers}[$__rate_interval])))"
        for quantile in (0.5, 0.95, 0.99)
    }


_OVERVIEW = (
    _Panel(
        title="Traffic",
        unit="reqps",
        description="Requests answered, by route.",
        queries={"{{route}}": "route:titok_http_requests:rate5m"},
        alert="TiTokDown",
    ),
    _Panel(
        title="Errors and goodput",
        unit="percentunit",
        description="Share of requests answered with 5xx, and of successful requests (not failed, rejected or cancelled).",
        queries={"5xx": "titok:http_errors:ratio_rate5m", "goodput": "titok:goodput:ratio_rate5m"},
        alert="TiTokErrorBudgetBurnsFast",
    ),
    _Panel(
        title="Error budget burn",
        unit="none",
        description="1: the monthly error budget lasts exactly one month.",
        queries={window: f"titok:slo_burn:rate{window}" for window in ("5m", "30m", "1h", "6h")},
        alert="TiTokErrorBudgetBurnsSlowly",
    ),
    _Panel(
        title="Latency",
        unit="s",
        description="Distribution of request durations.",
        is_heatmap=True,
        queries={"{{le}}": "sum by (le) (increase(titok_http_request_duration_seconds_bucket[$__rate_interval]))"},
        alert="TiTokSlow",
    ),
    _Panel(
        title="Saturation",
        unit="percentunit",
        description="Share of time in which the devices compute.",
        queries={"{{instance}}": "instance:titok_device_busy:ratio_rate5m"},
        alert="TiTokSaturated",
    ),
    _Panel(
        title="Workers",
        unit="short",
        description="Devices that can run batches, and restarted processes.",
        queries={"{{device}}": "titok_worker_up", "restarts {{instance}}": "instance:titok_restarts:increase15m"},
        alert="TiTokWorkerDown",
    ),
    _Panel(
        title="Cache hit ratio",
        unit="percentunit",
        description="Share of images whose code was in the cache.",
        queries={"hits": "titok:cache_hits:ratio_rate5m"},
    ),
    _Panel(
        title="Redis circuit breaker",
        unit="short",
        description="0 closed, 1 half-open, 2 open.",
        queries={"{{instance}}": "titok_cache_breaker"},
        alert="TiTokCacheOpen",
    ),
    _Panel(
        title="Batch size",
        unit="short",
        description="Distribution of the number of images per batch.",
        is_heatmap=True,
        queries={"{{le}}": "sum by (le) (increase(titok_batch_images_bucket[$__rate_interval]))"},
    ),
    _Panel(
        title="Queue wait and device time",
        unit="s",
        description="Average queue wait of an image, and average device time of a batch.",
        queries={
            f"{name} {{{{op}}}}": f"sum by (op) (rate({metric}_sum{only}[$__rate_interval])) / "
            f"sum by (op) (rate({metric}_count{only}[$__rate_interval]))"
            for name, metric, only in (
                ("wait", "titok_queue_wait_seconds", ""),
                ("device", "titok_batch_duration_seconds", '{stage="device"}'),
            )
        },
        alert="TiTokQueueWaitLong",
    ),
    _Panel(
        title="Preprocessing",
        unit="s",
        description="Time to decode, resize and crop one image.",
        queries=_quantiles("titok_preprocess_duration_seconds"),
    ),
    _Panel(
        title="Response encoding",
        unit="s",
        description="Time to scale and encode one image of a response.",
        queries=_quantiles("titok_render_duration_seconds"),
        alert="TiTokSlow",
    ),
    _Panel(
        title="GPU memory",
        unit="bytes",
        description="By device and kind; none for a CPU.",
        queries={"{{device}} {{kind}}": "titok_gpu_memory_bytes"},
        alert="TiTokGpuOutOfMemory",
    ),
    _Panel(
        title="GPU utilisation",
        unit="percentunit",
        description="Share of time in which the GPU computes, for any process; none for a CPU.",
        queries={"{{device}}": "titok_gpu_utilization_ratio"},
        alert="TiTokSaturated",
    ),
    _Panel(
        title="GPU temperature",
        unit="celsius",
        description="A hot GPU throttles; none for a CPU.",
        queries={"{{device}}": "titok_gpu_temperature_celsius"},
        alert="TiTokSlow",
    ),
)


def _lane(op: str) -> tuple[_Panel, ...]:
    only = f'{{op="{op}"}}'
    return (
        _Panel(
            title="Queue length",
            unit="short",
            description="Images in the queue.",
            queries={"images": f"sum(titok_queue_images{only})"},
            alert="TiTokQueueWaitLong",
        ),
        _Panel(
            title="Queue wait",
            unit="s",
            description="Time from admission to the start of the batch.",
            queries=_quantiles("titok_queue_wait_seconds", only),
            alert="TiTokQueueWaitLong",
        ),
        *_batches(op),
        _Panel(
            title="Rejected and dropped",
            unit="ops",
            description="Images rejected at admission, and images dropped before they were finished.",
            queries={
                name: f"sum(rate({metric}{only}[$__rate_interval])) or vector(0)"
                for name, metric in (("rejected", "titok_rejected_total"), ("dropped", "titok_abandoned_total"))
            },
            alert="TiTokRejects",
        ),
        _Panel(
            title="In progress",
            unit="short",
            description="Requests in progress.",
            queries={"requests": f"sum(titok_requests_in_progress{only})"},
        ),
    )


def _batches(op: str) -> tuple[_Panel, ...]:
    only = f'{{op="{op}"}}'
    return (
        _Panel(
            title="Device time",
            unit="s",
            description="Duration of a batch; for generate, of a sampling step.",
            queries=_quantiles("titok_batch_duration_seconds", f'{{op="{op}",stage="device"}}'),
            alert="TiTokSlow",
        ),
        _Panel(
            title="Batch overhead",
            unit="s",
            description="Average time per batch to hand it to the worker, and to copy its results to the requests.",
            queries={
                stage: f'sum(rate(titok_batch_duration_seconds_sum{{op="{op}",stage="{stage}"}}[$__rate_interval])) / '
                f'sum(rate(titok_batch_duration_seconds_count{{op="{op}",stage="{stage}"}}[$__rate_interval]))'
                for stage in ("hand_over", "results")
            },
        ),
        _Panel(
            title="Padding",
            unit="percentunit",
            description="Share of padding rows, added to reach the size of a recorded CUDA graph, since the worker's start; "
            "a CPU adds none.",
            queries={"{{device}}": f"titok_batch_padding_ratio{only}"},
        ),
        _Panel(
            title="Batch size",
            unit="short",
            description="Average number of images per batch.",
            queries={
                "images": f"sum(rate(titok_batch_images_sum{only}[$__rate_interval])) / "
                f"sum(rate(titok_batch_images_count{only}[$__rate_interval]))"
            },
        ),
    )


def _dashboard(name: str, title: str, panels: tuple[_Panel, ...]) -> str:
    board = Dashboard(title).uid(f"titok-{name}").tags(["titok"]).refresh("15s").time("now-1h", "now").readonly()
    for panel in panels:
        board.with_panel(panel.builder())
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def documents() -> Iterator[tuple[Path, str]]:
    """Path and content of each dashboard."""
    yield FOLDER / "overview.json", _dashboard("overview", "TiTok overview", _OVERVIEW)
    for op in LANES:
        yield FOLDER / f"{op}.json", _dashboard(op, f"TiTok {op}", _lane(op))


if __name__ == "__main__":
    for path, document in documents():
        path.write_text(document)
