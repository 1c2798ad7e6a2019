"""Log lines of one process: whatever writes them, they have one form."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.settings import LogFormat, Settings
from service.telemetry.access_log import AccessLog, open_access_log
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
    """What a process that runs the statements writes to standard error."""
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
def test_whatever_is_told_is_one_line_of_json(statements: str, logger: str, event: str) -> None:
    [line] = [json.loads(line) for line in written(statements).splitlines()]
    assert (line["logger"], line["process"]) == (logger, "front end 0")
    assert event in line["event"]
    assert ("ZeroDivisionError" in line.get("exception", "")) == ("exception" in event)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_does_not_tell_what_variables_hold(form: str) -> None:
    text = written("try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')", form)
    assert "ZeroDivisionError" in text
    assert "bytes of an image" not in text


def test_a_line_holds_the_request_id_and_no_other_extras() -> None:
    statements = "log.warning('failed', extra={'request_id': 'abc', 'authorization': 'Bearer secret'})"
    line = json.loads(written(statements))
    assert line["request_id"] == "abc"
    assert "secret" not in json.dumps(line)


def record(**state: object) -> RequestRecord:
    scope = {"path": "/v1/encode", "method": "POST", "state": state}
    made = RequestRecord(scope, "abc", RequestTimings())
    made.note_sent({"type": "http.response.start", "status": 200})
    made.note_sent({"type": "http.response.body", "body": b"{}"})
    return made


def write(*records: RequestRecord, level: str = "info", log_format: LogFormat = "json") -> None:
    """Writes of requests that end together."""

    async def end_all() -> None:
        access_log = AccessLog("front end 0", level=level, log_format=log_format)
        for ended in records:
            access_log.write(ended)
        access_log.flush()

    asyncio.run(end_all())


def test_an_access_line_names_the_key_of_its_caller(capsys: pytest.CaptureFixture[str]) -> None:
    write(record(key_name="batch jobs"))
    assert json.loads(capsys.readouterr().err)["key_name"] == "batch jobs"


def test_an_access_line_for_people_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    write(record(), log_format="text")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "request_id=abc" in text
    assert "outcome=ok" in text


def test_what_ends_together_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    write(record(key_name="one"), record(key_name="two"))
    assert [json.loads(line)["key_name"] for line in capsys.readouterr().err.splitlines()] == ["one", "two"]


def test_an_access_line_says_when_it_was_written_and_how_long_what_took(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 1_767_225_599  # the last second of 2025
    moments = iter([begun * 10**9 + 42_999, begun * 10**9 + 999_999_999, (begun + 1) * 10**9 + 7_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    took = [record(), record(), record()]
    took[0].seconds = 0.0123456
    took[0].timings.add("cache", 0.0000006)
    write(*took)
    first, *others = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first["timestamp"] == "2025-12-31T23:59:59.000042Z"
    assert [line["timestamp"] for line in others] == ["2025-12-31T23:59:59.999999Z", "2026-01-01T00:00:00.000007Z"]
    assert (first["duration_ms"], first["stages_ms"]) == (12.346, {"cache": 0.001})


class Told(io.StringIO):
    """Standard error that says when it was written to, and what at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.written.set()
        self.pieces.append(text)
        return super().write(text)


@pytest.mark.anyio
async def test_lines_are_written_a_moment_later_or_when_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", told := Told())
    access_log = AccessLog("front end 0", level="info", log_format="json")
    access_log.write(record())
    assert not told.written.is_set()
    async with asyncio.timeout(30):
        await told.written.wait()
    assert told.getvalue().count("\n") == 1
    for _ in range(100):
        access_log.write(record())
    assert len(told.pieces) > 5
    access_log.flush()
    assert told.getvalue().count("\n") == 101
    assert all(piece.endswith("\n") and len(piece) <= 4096 for piece in told.pieces)  # or a pipe would mix them


def test_access_lines_keep_to_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    write(record(), level="warning")
    assert not capsys.readouterr().err


def test_access_lines_can_be_turned_off() -> None:
    assert open_access_log("front end 0", Settings(access_log=False)) is None
    assert open_access_log("front end 0", Settings()) is not None


def test_a_log_that_cannot_be_written_fails_no_request() -> None:
    probe = """
from tests.service.telemetry.test_log_lines import record, write
write(record())
print("alive")
"""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", probe]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=60)
    assert ended.stdout == "alive\n"
