"""Supervised child processes: real ones, each a few lines long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.processes.child import Child

pytestmark = pytest.mark.anyio

PREAMBLE = """
import json, os, socket, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
lines = control.makefile("rb")
start = json.loads(lines.readline())["start"]
def tell(**status):
    control.sendall(json.dumps({"status": status}).encode() + b"\\n")
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Child]:
    """Makes a child that runs the given program."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(program: str, **options: Any) -> Child:
        (tmp_path / "program.py").write_text(PREAMBLE + program)
        return Child("child", "program", **{"start": {}, "heartbeat_seconds": 0.4, "batch_timeout": 9.0, **options})

    return make


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_child_receives_its_settings_and_reports_its_status(child: Callable[..., Child]) -> None:
    one = child("tell(state='ready', greeting=start['greeting'])\nlines.read()", start={"greeting": "hello"})
    life = asyncio.create_task(one.run())
    assert one.state == "starting"
    await until(lambda: one.state == "ready")
    assert one.status["greeting"] == "hello"
    one.kill()
    await life
    assert (one.state, one.pid, one.restarts) == ("stopped", None, 0)


async def test_a_child_that_exits_is_restarted_with_backoff(child: Callable[..., Child]) -> None:
    ended: list[float] = []
    one = child(
        "tell(state='failed', reason='no luck')\nsys.exit(7)", after_death=lambda: ended.append(time.monotonic())
    )
    life = asyncio.create_task(one.run())
    await until(lambda: len(ended) == 4)
    one.kill()
    await life
    assert one.deaths == {"exit": 4}
    assert (one.last_death, one.reason) == ("exited with 7", "no luck")
    pauses = [later - earlier for earlier, later in pairwise(ended)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))


@pytest.mark.parametrize(("begin", "pauses"), [("", ["0.1", "0.2"]), ("tell(state='ready')", ["0.1", "0.1"])])
async def test_the_backoff_is_reset_when_a_child_has_been_ready_for_long(
    child: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    begin: str,
    pauses: list[str],
) -> None:
    monkeypatch.setattr("service.processes.child.HEALTHY_SECONDS", 0.2)
    one = child(f"{begin}\ntime.sleep(0.4)\nsys.exit(1)")
    life = asyncio.create_task(one.run())
    await until(lambda: caplog.text.count("restarting in") == 2)
    one.kill()
    await life
    messages = [record.getMessage() for record in caplog.records if record.name == "service.processes.child"]
    assert [message.split()[-2] for message in messages] == pauses


async def test_a_child_with_a_wrong_configuration_is_not_restarted(child: Callable[..., Child]) -> None:
    one = child("tell(state='failed', reason='no such weights')\nsys.exit(78)")
    await asyncio.wait_for(one.run(), 60)
    assert one.configuration_error == "no such weights"


async def test_a_child_that_was_ready_once_is_restarted_for_whatever_reason_it_exits(
    child: Callable[..., Child],
) -> None:
    one = child("tell(state='ready')\ntell(state='failed', reason='weights are gone')\nsys.exit(78)")
    life = asyncio.create_task(one.run())
    await until(lambda: one.restarts == 2)
    assert (one.configuration_error, one.reason) == (None, "weights are gone")
    one.kill()
    await life


async def test_carried_over_status_is_passed_to_the_next_start(child: Callable[..., Child]) -> None:
    one = child(
        "found = start.get('limits', [])\n"
        "tell(state='ready', limits=[*found, os.getpid()])\n"
        "sys.exit(1) if len(found) < 2 else lines.read()",
        carry_over="limits",
    )
    life = asyncio.create_task(one.run())
    await until(lambda: len(one.status.get("limits", [])) == 3)
    assert len(set(one.status["limits"])) == 3
    one.kill()
    await life


async def test_a_child_without_heartbeats_is_killed_and_restarted(child: Callable[..., Child]) -> None:
    one = child("tell(state='ready')\nlines.read()")
    life = asyncio.create_task(one.run())
    await until(lambda: one.deaths["hung"] == 1)
    assert one.last_death == "did not answer for 0.4 s and was killed"
    await until(lambda: one.state == "ready")
    one.kill()
    await life


async def test_a_child_that_opens_its_device_may_send_no_heartbeats(child: Callable[..., Child]) -> None:
    one = child("tell(state='opening')\ntime.sleep(1.2)\ntell(state='ready')\nlines.read()")
    life = asyncio.create_task(one.run())
    await until(lambda: one.state == "ready")
    assert one.restarts == 0
    one.kill()
    await life


async def test_a_child_with_a_batch_over_the_timeout_is_killed(child: Callable[..., Child]) -> None:
    one = child("while True:\n    tell(state='ready', busy_seconds=9.5)\n    time.sleep(0.05)")
    life = asyncio.create_task(one.run())
    await until(lambda: one.deaths["stuck"] == 1)
    one.kill()
    await life


async def test_a_suspended_supervisor_does_not_kill_its_children(child: Callable[..., Child]) -> None:
    one = child("while True:\n    tell(state='ready')\n    time.sleep(0.05)")
    life = asyncio.create_task(one.run())
    await until(lambda: one.state == "ready")
    time.sleep(2.0)  # noqa: ASYNC251  the event loop stands still
    await asyncio.sleep(0.2)
    assert one.restarts == 0
    one.kill()
    await life


async def test_a_stop_command_reaches_a_child_that_is_starting(child: Callable[..., Child]) -> None:
    one = child("print(json.loads(lines.readline())['do'])\nsys.exit(0)")
    life = asyncio.create_task(one.run())
    await until(lambda: one.pid is not None)
    one.stop("stop")
    await asyncio.wait_for(life, 60)
    assert one.restarts == 0


async def test_a_child_that_cannot_be_started_is_retried(
    child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    one = child("")
    life = asyncio.create_task(one.run())
    await until(lambda: one.restarts == 2)
    assert one.reason is not None
    assert "/nowhere/python" in one.reason
    one.kill()
    await life


async def test_a_child_is_killed_when_its_task_is_cancelled(child: Callable[..., Child]) -> None:
    one = child("tell(state='ready')\nlines.read()", heartbeat_seconds=60.0)
    life = asyncio.create_task(one.run())
    await until(lambda: one.state == "ready")
    pid = one.pid
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    await until(lambda: _has_ended(pid))


def _has_ended(pid: int | None) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
