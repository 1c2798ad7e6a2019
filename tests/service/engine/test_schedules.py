"""Property tests: under any schedule of events every request ends exactly once, and correctly."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import DeadlineExceeded, DeviceFailed, Engine, EngineStopped, LaneLimits, QueueFull, WorkerCrashed
from service.engine.jobs import Outcome
from service.engine.remote import RemoteLink
from tests.service.engine.fakes import (
    AT_REST,
    PATIENCE,
    FakeClock,
    FakeDevice,
    FakeObserver,
    FakeWorker,
    encode,
    generated,
    images,
    inline_engine,
    items,
    remote_engine,
    tokens,
)

LIMITS = LaneLimits(max_batch_size=3, max_images=8, max_bytes=7 * images(0).nbytes)
STEPS = 2

Ending = Literal["drain", "stop", "die"]


@dataclass(frozen=True)
class Submit:
    lane: Literal["encode", "decode", "generate"]
    size: int
    patience: int
    poisoned: bool


@dataclass(frozen=True)
class Cancel:
    request: int


@dataclass(frozen=True)
class LetThrough:
    calls: int


@dataclass(frozen=True)
class Advance:
    seconds: int


@dataclass(frozen=True)
class Crash:
    """The worker dies in its current or next call."""


Action = Submit | Cancel | LetThrough | Advance | Crash
Form = Literal["inline", "remote"]

ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(
        Submit,
        lane=st.sampled_from(["encode", "decode", "generate"]),
        size=st.integers(1, 9),
        patience=st.sampled_from([100, 200, 1000]),
        poisoned=st.sampled_from([False, False, False, True]),
    ),
    st.builds(Cancel, request=st.integers(0, 9)),
    st.builds(LetThrough, calls=st.integers(1, 3)),
    st.builds(Advance, seconds=st.sampled_from([50, 100])),
)
ACTIONS_AND_CRASHES = st.one_of(ACTIONS, st.builds(Crash))


class Request:
    """A request, and the outcomes that are allowed for it."""

    def __init__(self, engine: Engine, action: Submit, values: tuple[int, ...], now: float) -> None:
        self.values = values
        self.poisoned = action.poisoned
        self.deadline = now + action.patience
        self.cancelled = False
        self.endings = 0
        self.expected: Any
        if action.lane == "encode":
            call, self.expected = encode(engine, images(*values), deadline=self.deadline), tokens(*values)
        elif action.lane == "decode":
            call, self.expected = engine.decode(tokens(*values), deadline=self.deadline), images(*values)
        else:
            call = engine.generate(items(*values, steps=STEPS), deadline=self.deadline)
            self.expected = generated(*values, steps=STEPS)
        self.task = asyncio.create_task(call)
        self.task.add_done_callback(self._note_ending)

    def _note_ending(self, _: asyncio.Task[Any]) -> None:
        self.endings += 1

    def check(self, now: float, ending: Ending, lost: Counter[int]) -> None:
        assert self.endings == 1
        if self.task.cancelled():
            assert self.cancelled
            return
        error = self.task.exception()
        if error is None:
            result = self.task.result()
            np.testing.assert_array_equal(getattr(result, "tokens", getattr(result, "images", None)), self.expected)
            assert not self.poisoned
        elif isinstance(error, DeviceFailed):
            assert self.poisoned
        elif isinstance(error, WorkerCrashed):
            assert any(lost[value] > 1 for value in self.values)
        elif isinstance(error, DeadlineExceeded):
            assert now >= self.deadline
        elif isinstance(error, EngineStopped) and ending == "drain":
            assert lost  # rejected between a worker's death and its restart
            assert "the worker has gone" in str(error)
        else:
            assert isinstance(error, QueueFull | EngineStopped)


class Watch:
    """Tells whether the thread of an engine's only link has received all outcomes of its worker."""

    def __init__(self, engine: Engine) -> None:
        link = engine._links[0]
        assert isinstance(link, RemoteLink)
        self.link = link
        self._receive = link.receive
        self._is_waiting = False
        link.receive = self._watched  # type: ignore[method-assign]

    def _watched(self) -> Outcome:
        self._is_waiting = True
        try:
            return self._receive()
        finally:
            self._is_waiting = False

    @property
    def is_up_to_date(self) -> bool:
        """Whether the thread waits for the outcome of the current call and has received all earlier ones."""
        return self._is_waiting and int(self.link._started[0]) == self.link._received + 1


class Schedule:
    """Runs actions one after the other on an engine whose device is blocked."""

    def __init__(self, form: Form, folder: Path) -> None:
        self.depth = 1 if form == "inline" else 2
        self.device = FakeDevice()
        self.clock = FakeClock()
        self.observer = FakeObserver()
        self.worker: FakeWorker | None = None
        self.watch: Watch | None = None
        self.engine: Engine
        if form == "inline":
            self.engine = inline_engine(lambda: self.device, limits=LIMITS, observer=self.observer, clock=self.clock)
        else:
            self.worker = FakeWorker(folder / "worker", lambda: self.device, self.clock)
            addresses = {"fake": str(self.worker.address)}
            self.engine = remote_engine(addresses, limits=LIMITS, observer=self.observer, clock=self.clock)
            self.watch = Watch(self.engine)
        self.requests: list[Request] = []
        self.values = iter(range(1, 60_000))

    async def play(self, actions: list[Action], ending: Ending) -> None:
        untold: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: untold.append(context))
        self.engine.start()
        await self.engine.ready()
        self.device.hold()
        for action in actions:
            await self._act(action)
            await self._until_still()
            self._check_bounds(crashes=self.device.lost.total())
        await self._finish(ending)
        await asyncio.wait_for(
            asyncio.gather(*(request.task for request in self.requests), return_exceptions=True), PATIENCE
        )
        await asyncio.sleep(0)
        for request in self.requests:
            request.check(self.clock.now, ending, self.device.lost)
        self._check_every_image_is_accounted_for()
        assert self.engine.snapshot() == AT_REST
        if self.worker is not None:
            self.worker.stop()
        assert untold == []

    async def _act(self, action: Action) -> None:
        match action:
            case Submit():
                await self._submit(action)
            case Cancel():
                if self.requests:
                    request = self.requests[action.request % len(self.requests)]
                    request.cancelled = request.task.cancel() or request.cancelled
            case LetThrough():
                self.device.let_through(action.calls)
            case Advance():
                self.clock.advance(action.seconds)
            case Crash():
                self.device.lose_next = True
                self.device.let_through(1)

    async def _submit(self, action: Submit) -> None:
        held = self.engine.snapshot()[action.lane]
        values = tuple(next(self.values) for _ in range(action.size))
        if action.poisoned:
            self.device.poison.add(values[-1])
        image_bytes = {"encode": images(0).nbytes, "decode": tokens(0).nbytes, "generate": 0}[action.lane]
        fits = (
            held.queued_images + action.size <= LIMITS.max_images
            and held.queued_bytes + action.size * image_bytes <= LIMITS.max_bytes
        )
        request = Request(self.engine, action, values, self.clock.now)
        self.requests.append(request)
        await asyncio.sleep(0)
        refused = request.task.done() and isinstance(request.task.exception(), QueueFull)
        assert refused != fits

    async def _until_still(self) -> None:
        """Waits until the device thread is blocked in a call or idle, and no job or outcome is in transit."""
        async with asyncio.timeout(PATIENCE):
            while not (self._is_held() or self.engine.snapshot() == AT_REST) or not self.engine.state.is_ready:  # noqa: ASYNC110  a thread's doing
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    def _is_held(self) -> bool:
        return self.device.is_held and (self.watch is None or self.watch.is_up_to_date)

    async def _finish(self, ending: Ending) -> None:
        if ending == "stop":
            await self.engine.stop(0)
        elif ending == "die":
            self.device.fatal = set(range(60_000))
        self.device.release()
        await self.engine.stop(PATIENCE)

    def _check_bounds(self, *, crashes: int) -> None:
        for lane in self.engine.snapshot().values():
            # Prefetched images of a dead worker return to a queue that may be full again.
            spare = LIMITS.max_batch_size if crashes else 0
            assert 0 <= lane.queued_images <= LIMITS.max_images + spare
            assert 0 <= lane.queued_bytes <= LIMITS.max_bytes + spare * images(0).nbytes
            # The running batch, and images of a failed one that wait for an unbatched retry.
            assert 0 <= lane.active_images <= self.depth * LIMITS.max_batch_size
        assert all(1 <= len(call.rows) <= LIMITS.max_batch_size for call in self.device.calls)

    def _check_every_image_is_accounted_for(self) -> None:
        """The device started every image at most once, except retries after a failure or a crash."""
        tries = Counter(value for call in self.device.calls if call.name != "step" for value in call.rows) + Counter(
            seed for call in self.device.calls if call.name == "step" for seed, step in call.rows if step == 0
        )
        assert all(count <= 2 + self.device.lost[value] for value, count in tries.items())
        if not self.device.poison:
            assert all(count <= 1 + self.device.lost[value] for value, count in tries.items())


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.sampled_from(["drain", "drain", "stop", "die"]))
def test_every_request_of_any_schedule_ends_exactly_once_and_correctly(actions: list[Action], ending: Ending) -> None:
    play("inline", actions, ending)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS_AND_CRASHES, max_size=25), st.sampled_from(["drain", "drain", "stop"]))
def test_every_request_ends_exactly_once_and_correctly_when_workers_die(actions: list[Action], ending: Ending) -> None:
    play("remote", actions, ending)


def play(form: Form, actions: list[Action], ending: Ending) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Schedule(form, Path(folder)).play(actions, ending))
