"""Files of metrics: on a full disk the service goes on without metrics, and a scrape meets no half-made file."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, mmap_dict, values
from prometheus_client.exposition import generate_latest

from service.telemetry import metric_files
from service.telemetry.metric_files import MetricFile, count_in_files, metrics_error, multiprocess_registry


@pytest.fixture(autouse=True)
def front_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of this process are counted in files, for the time of a test."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(values, "MmapedDict", values.MmapedDict)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(metric_files, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(MetricFile, "errors", {})
    count_in_files(tmp_path, "front-end-0")


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may become larger: the system refuses it, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def counter() -> Counter:
    return Counter("titok_events", "Events.", ("kind",), registry=CollectorRegistry())


def exported(folder: Path) -> dict[str, float]:
    families = multiprocess_registry(folder).collect()
    return {sample.labels["kind"]: sample.value for family in families for sample in family.samples}


def test_a_file_has_all_of_its_space_before_it_is_mapped_also_when_it_grows(tmp_path: Path) -> None:
    events = counter()
    for number in range(2000):
        events.labels(str(number)).inc(number)
        [file] = tmp_path.iterdir()
        assert file.stat().st_blocks * 512 >= file.stat().st_size
    assert exported(tmp_path) == {str(number): number for number in range(2000)}
    count_in_files(tmp_path, "front-end-0")  # its successor
    counter().labels("7").inc()
    assert exported(tmp_path)["7"] == 8


def test_without_space_metrics_are_counted_in_memory_and_exported_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk_of(1000):
        events = counter()
        for kind in ("one", "two"):
            events.labels(kind).inc()
        assert exported(tmp_path) == {}
        assert str(tmp_path) in str(metrics_error())
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    events.labels("one").inc()
    assert exported(tmp_path) == {"one": 2}
    assert metrics_error() is None


def test_a_file_that_cannot_grow_keeps_its_series(tmp_path: Path) -> None:
    events = counter()
    with disk_of(metric_files._INITIAL_BYTES):
        for number in range(2000):
            events.labels(str(number)).inc()
        events.labels("0").inc()
        assert metrics_error() is not None
        assert exported(tmp_path)["0"] == 2
        assert len(exported(tmp_path)) < 2000


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\xff" * 64])
def test_a_file_that_cannot_be_read_is_left_out_of_a_scrape(tmp_path: Path, content: bytes) -> None:
    counter().labels("one").inc()
    (tmp_path / "counter_other.db").write_bytes(content)
    assert b'titok_events_total{kind="one"} 1.0' in generate_latest(multiprocess_registry(tmp_path))


def test_a_file_is_never_seen_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    allocate = metric_files._allocate

    def watched(path: Path, size: int) -> None:
        allocate(path, size)
        seen.append([file.name for file in tmp_path.glob("*.db")])

    monkeypatch.setattr(metric_files, "_allocate", watched)
    counter().labels("one").inc()
    assert seen == [[]]
    assert mmap_dict.MmapedDict.read_all_values_from_file(str(tmp_path / "counter_front-end-0.db"))
