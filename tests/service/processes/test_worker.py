"""A worker opens its device."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from service.inference.device import ModelDevice
from service.processes import worker
from service.processes.control import WorkerStart
from service.settings import Settings
from tests.tiny_models import tiny_tokenizer


@pytest.fixture
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_loaded_is_not_visited_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, unfrozen: None
) -> None:
    monkeypatch.setattr("service.inference.device.open_device", lambda *_, **__: ModelDevice(tiny_tokenizer(), None))
    start = WorkerStart(name="worker cpu", settings={}, device="cpu", address="", liveness_pipe=-1)
    device = worker._open(Settings(), start)
    assert not any(each is device for each in gc.get_objects())  # does not list frozen objects
