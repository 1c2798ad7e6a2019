"""The format of log lines, and the access log."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import structlog
from starlette.responses import PlainTextResponse

from service.http.middleware import RequestContext
from service.settings import LogFormat
from service.telemetry import access_log
from service.telemetry.access_log import log_request
from service.telemetry.log_lines import configure_log
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord
from service.telemetry.timings import RequestTimings

START = """
import logging, threading, warnings
from service.telemetry.log_lines import configure_log
configure_log("front end 0", level="info", log_format={form!r})
log = logging.getLogger("some.library")
image = b"bytes of an image"
"""


def written(statements: str, form: str = "json") -> str:
    """Standard error of a process that runs the statements."""
    command = [sys.executable, "-c", START.format(form=form) + statements]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr


@pytest.mark.parametrize(
    ("statements", "logger", "event"),
    [
        ("log.info('%d of %d', 1, 2)", "some.library", "1 of 2"),
        ("warnings.warn('old')", "py.warnings", "old"),
        ("1 / 0", "service.telemetry.log_lines", "the process ends with an exception"),
        (
            "threading.Thread(target=lambda: 1 / 0, name='decoder').start()",
            "service.telemetry.log_lines",
            "thread 'decoder' ends with an exception",
        ),
    ],
    ids=["logging", "warnings", "an exception", "an exception in a thread"],
)
def test_every_event_is_one_line_of_json(statements: str, logger: str, event: str) -> None:
    [line] = [json.loads(line) for line in written(statements).splitlines()]
    assert (line["logger"], line["process"]) == (logger, "front end 0")
    assert event in line["event"]
    assert ("ZeroDivisionError" in line.get("exception", "")) == ("exception" in event)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_does_not_contain_the_values_of_variables(form: str) -> None:
    text = written("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')", form)
    assert "ZeroDivisionError" in text
    assert "bytes of an image" not in text


def test_a_line_has_the_request_id_and_no_other_extras() -> None:
    statements = "log.warning('failed', extra={'request_id': 'abc', 'authorization': 'Bearer secret'})"
    line = json.loads(written(statements))
    assert line["request_id"] == "abc"
    assert "secret" not in json.dumps(line)


def record(**state: object) -> RequestRecord:
    scope = {"path": "/v1/encode", "method": "POST", "state": state}
    made = RequestRecord(scope, "abc", RequestTimings())
    made.count_sent({"type": "http.response.start", "status": 200})
    made.count_sent({"type": "http.response.body", "body": b"{}"})
    return made


def access_lines(*records: RequestRecord, level: str = "info", form: LogFormat = "json") -> str:
    """What the access log writes to standard error."""
    error = io.StringIO()
    with configured(error, level=level, form=form):
        for ended in records:
            log_request(ended)
    return error.getvalue()


@contextmanager
def configured(error: io.StringIO, *, level: str = "info", form: LogFormat = "json") -> Iterator[None]:
    """The log of this process, on a standard error of its own."""
    root = logging.getLogger()
    level_before = root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", error)
        for owner in (sys, threading):  # to be restored
            patch.setattr(owner, "excepthook", owner.excepthook)
        patch.setattr(root, "handlers", [])
        configure_log("front end 0", level=level, log_format=form)
        access_log._log.cache_clear()
        yield
        access_log._log.cache_clear()
    root.setLevel(level_before)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_an_access_line_names_the_key_of_its_caller() -> None:
    assert json.loads(access_lines(record(key_name="batch jobs")))["key_name"] == "batch jobs"


def test_an_access_line_in_text_format_is_not_json() -> None:
    text = access_lines(record(), form="text")
    assert text.count("\n") == 1
    assert "request_id=abc" in text
    assert "outcome=ok" in text


def test_each_request_has_a_line_of_its_own() -> None:
    text = access_lines(record(key_name="one"), record(key_name="two"))
    assert [json.loads(line)["key_name"] for line in text.splitlines()] == ["one", "two"]


def test_an_access_line_holds_its_time_and_durations() -> None:
    took = record()
    took.seconds = 0.0123456
    took.timings.add("cache", 0.0000006)
    before = datetime.now(UTC)
    line = json.loads(access_lines(took))
    assert before <= datetime.fromisoformat(line["timestamp"]) <= datetime.now(UTC)
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["event"], line["process"]) == ("info", "request", "front end 0")
    assert (line["duration_ms"], line["stages_ms"]) == (12.346, {"cache": 0.001})


def test_access_lines_keep_to_the_level() -> None:
    assert not access_lines(record(), level="warning")


@pytest.mark.anyio
@pytest.mark.parametrize("enabled", [True, False])
async def test_access_lines_can_be_turned_off(enabled: bool) -> None:
    app = RequestContext(PlainTextResponse("hello"), Metrics(), Counter(), lambda: False, access_log=enabled)
    with configured(error := io.StringIO()):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            assert (await client.get("http://test/")).text == "hello"
    assert error.getvalue().count('"event":"request"') == int(enabled)


def test_a_log_that_cannot_be_written_fails_no_request() -> None:
    probe = """
from service.telemetry import access_log
from service.telemetry.access_log import log_request
from service.telemetry.log_lines import configure_log
from tests.service.telemetry.test_log_lines import record
configure_log("front end 0", level="info", log_format="json")
log_request(record())
print("alive")
"""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", probe]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=60)
    assert ended.stdout == "alive\n"
