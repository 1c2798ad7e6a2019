"""Generates the JSON of the Grafana dashboards: ``python deploy/grafana/dashboards.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders import heatmap, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableOption, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["LANES", "documents"]

LANES = ("encode", "decode", "generate")
FOLDER = Path(__file__).parent / "json"
_ALERTS = Path(__file__).parents[1] / "prometheus" / "alerts.yml"
_RUNBOOKS = {
    rule["alert"]: rule["annotations"]["runbook_url"]
    for group in yaml.safe_load(_ALERTS.read_text())["groups"]
    for rule in group["rules"]
}
_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
# What the pickers select. Without Kubernetes no series has a namespace, which the value of "All" matches too.
_NAMESPACE = 'namespace=~"$namespace"'
_SELECTED = f'{_NAMESPACE},instance=~"$instance"'
_ALL = ".*"


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
            panel.links([link.url(_RUNBOOKS[self.alert])])
        return panel


def _selected(metric: str, *labels: str) -> str:
    """A metric with the matchers of the pickers, and others such as ``op="encode"``."""
    return f"{metric}{{{','.join((_SELECTED, *labels))}}}"


def _rate(metric: str, *labels: str, by: str = "", function: str = "rate") -> str:
    return f"sum{f' by ({by}) ' if by else ''}({function}({_selected(metric, *labels)}[$__rate_interval]))"


def _mean(metric: str, *labels: str, by: str = "") -> str:
    return f"{_rate(f'{metric}_sum', *labels, by=by)} / {_rate(f'{metric}_count', *labels, by=by)}"


def _quantiles(metric: str, *labels: str) -> dict[str, str]:
    return {
        f"p{round(100 * quantile)}": f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', *labels, by='le')})"
        for quantile in (0.5, 0.95, 0.99)
    }


_OVERVIEW = (
    _Panel(
        title="Traffic",
        unit="reqps",
        description="Requests answered, by route.",
        queries={"{{route}}": _rate("titok_http_requests_total", by="route")},
        alert="TiTokDown",
    ),
    _Panel(
        title="Errors and goodput",
        unit="percentunit",
        description="Share of requests answered with 5xx, and of successful requests (not failed, rejected or cancelled), "
        "by namespace.",
        queries={
            f"{name} {{{{namespace}}}}": f"{rule}{{{_NAMESPACE}}}"
            for name, rule in (
                ("5xx", "titok:http_errors:ratio_rate5m"),
                ("goodput", "titok:goodput:ratio_rate5m"),
            )
        },
        alert="TiTokErrorBudgetBurnsFast",
    ),
    _Panel(
        title="Error budget burn",
        unit="none",
        description="1: the monthly error budget lasts exactly one month.",
        queries={
            f"{window} {{{{namespace}}}}": f"titok:slo_burn:rate{window}{{{_NAMESPACE}}}"
            for window in ("5m", "30m", "1h", "6h")
        },
        alert="TiTokErrorBudgetBurnsSlowly",
    ),
    _Panel(
        title="Latency",
        unit="s",
        description="Distribution of request durations.",
        is_heatmap=True,
        queries={"{{le}}": _rate("titok_http_request_duration_seconds_bucket", by="le", function="increase")},
        alert="TiTokSlow",
    ),
    _Panel(
        title="Saturation",
        unit="percentunit",
        description="Share of time in which the devices compute.",
        queries={"{{instance}}": _selected("instance:titok_device_busy:ratio_rate5m")},
        alert="TiTokSaturated",
    ),
    _Panel(
        title="Workers",
        unit="short",
        description="Devices that can run batches, and restarted processes.",
        queries={
            "{{instance}} {{device}}": _selected("titok_worker_up"),
            "restarts {{instance}}": _selected("instance:titok_restarts:increase15m"),
        },
        alert="TiTokWorkerDown",
    ),
    _Panel(
        title="Cache hit ratio",
        unit="percentunit",
        description="Share of images whose code was in the cache.",
        queries={"hits {{namespace}}": f"titok:cache_hits:ratio_rate5m{{{_NAMESPACE}}}"},
    ),
    _Panel(
        title="Redis circuit breaker",
        unit="short",
        description="0 closed, 1 half-open, 2 open.",
        queries={"{{instance}}": _selected("titok_cache_breaker")},
        alert="TiTokCacheOpen",
    ),
    _Panel(
        title="Batch size",
        unit="short",
        description="Distribution of the number of images per batch.",
        is_heatmap=True,
        queries={"{{le}}": _rate("titok_batch_images_bucket", by="le", function="increase")},
    ),
    _Panel(
        title="Queue wait and device time",
        unit="s",
        description="Average queue wait of an image, and average device time of a batch.",
        queries={
            f"{name} {{{{op}}}}": _mean(metric, *labels, by="op")
            for name, metric, *labels in (
                ("wait", "titok_queue_wait_seconds"),
                ("device", "titok_batch_duration_seconds", 'stage="device"'),
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
        queries={"{{instance}} {{device}} {{kind}}": _selected("titok_gpu_memory_bytes")},
        alert="TiTokGpuOutOfMemory",
    ),
    _Panel(
        title="GPU utilisation",
        unit="percentunit",
        description="Share of time in which the GPU computes, for any process; none for a CPU.",
        queries={"{{instance}} {{device}}": _selected("titok_gpu_utilization_ratio")},
        alert="TiTokSaturated",
    ),
    _Panel(
        title="GPU temperature",
        unit="celsius",
        description="A hot GPU throttles; none for a CPU.",
        queries={"{{instance}} {{device}}": _selected("titok_gpu_temperature_celsius")},
        alert="TiTokSlow",
    ),
)


def _lane(op: str) -> tuple[_Panel, ...]:
    only = f'op="{op}"'
    return (
        _Panel(
            title="Queue length",
            unit="short",
            description="Images in the queue.",
            queries={"images": f"sum({_selected('titok_queue_images', only)})"},
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
                name: _rate(metric, only)
                for name, metric in (("rejected", "titok_rejected_total"), ("dropped", "titok_abandoned_total"))
            },
            alert="TiTokRejects",
        ),
        _Panel(
            title="In progress",
            unit="short",
            description="Requests in progress.",
            queries={"requests": f"sum({_selected('titok_requests_in_progress', only)})"},
        ),
    )


def _batches(op: str) -> tuple[_Panel, ...]:
    only = f'op="{op}"'
    return (
        _Panel(
            title="Device time",
            unit="s",
            description="Duration of a batch; for generate, of a sampling step.",
            queries=_quantiles("titok_batch_duration_seconds", only, 'stage="device"'),
            alert="TiTokSlow",
        ),
        _Panel(
            title="Batch overhead",
            unit="s",
            description="Average time per batch to hand it to the worker, and to copy its results to the requests.",
            queries={
                stage: _mean("titok_batch_duration_seconds", only, f'stage="{stage}"')
                for stage in ("hand_over", "results")
            },
        ),
        _Panel(
            title="Padding",
            unit="percentunit",
            description="Share of padding rows, added to reach the size of a recorded CUDA graph, since the worker's start; "
            "a CPU adds none.",
            queries={"{{instance}} {{device}}": _selected("titok_batch_padding_ratio", only)},
        ),
        _Panel(
            title="Batch size",
            unit="short",
            description="Average number of images per batch.",
            queries={"images": f"{_rate('titok_batch_images_sum', only)} / {_rate('titok_batch_images_count', only)}"},
        ),
    )


def _picker(name: str, query: str) -> QueryVariable:
    """A variable with several values, all by default."""
    picker = QueryVariable(name).label(name.capitalize()).datasource(_PROMETHEUS).query(query)
    picker.multi(True).include_all(True).all_value(_ALL).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return picker.current(VariableOption(selected=True, text="All", value="$__all"))


def _dashboard(name: str, title: str, panels: tuple[_Panel, ...]) -> str:
    board = Dashboard(title).uid(f"titok-{name}").tags(["titok"]).refresh("15s").time("now-1h", "now").readonly()
    board.with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board.with_variable(_picker("namespace", "label_values(titok_build_info, namespace)"))
    board.with_variable(_picker("instance", f"label_values(titok_build_info{{{_NAMESPACE}}}, instance)"))
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
