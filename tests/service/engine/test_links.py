"""A link to one worker, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.engine.jobs import Job
from service.engine.remote import RemoteLink
from tests.service.engine.fakes import FakeClock, FakeDevice, FakeWorker, images, tokens


@pytest.fixture
def link(device: FakeDevice, clock: FakeClock, tmp_path: Path) -> Iterator[RemoteLink]:
    """An open link of depth two."""
    worker = FakeWorker(tmp_path / "worker", lambda: device, clock)
    link = RemoteLink("fake", str(worker.address), 2)
    link.open()
    yield link
    link.close()
    worker.stop()


def test_an_answer_is_not_overwritten_by_the_next(link: RemoteLink, soon: float) -> None:
    for value in (1, 2):
        link.send(Job(lane="decode", count=1, deadline=soon, tokens=tokens(value)))
    first, second = link.receive().result, link.receive().result
    np.testing.assert_array_equal(first, images(1))
    np.testing.assert_array_equal(second, images(2))


def test_a_worker_does_not_start_an_expired_job(
    link: RemoteLink, device: FakeDevice, clock: FakeClock, soon: float
) -> None:
    link.send(Job(lane="decode", count=1, deadline=clock.now, tokens=tokens(1)))
    link.send(Job(lane="decode", count=1, deadline=soon, tokens=tokens(2)))
    late, _ = link.receive(), link.receive()
    assert (late.result, late.error) == (None, None)
    assert device.rows_of("decode") == [(2,)]
