"""The service in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from service.http.sockets import listen
from service.processes.single_process import serve_inline
from service.settings import Settings


def test_a_device_that_cannot_be_opened_ends_the_service_with_its_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(tokenizer_weights=str(tmp_path / "missing.safetensors"), workers="inline", shutdown_delay=0)
    interval = sys.getswitchinterval()
    try:
        assert serve_inline(settings, listen("127.0.0.1", 0), listen("127.0.0.1", 0)) == 1
    finally:
        sys.setswitchinterval(interval)
    assert "the service ends: no weights at" in caplog.text
    assert "Traceback" not in caplog.text
