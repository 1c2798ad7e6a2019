"""The worker's end: one device, the thread that owns it, and a connection to each front end.

::

    front end ─> reading thread ─┐
    front end ─> reading thread ─┴─> inbox ─> device thread ─> answer to whoever asked

A front end has at most two jobs here, so that taking them as they come is fair.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from service.engine.blocks import Block, Rows, map_counter, map_rows
from service.engine.jobs import execute
from service.engine.protocol import Device
from service.engine.wire import Answer, Channel, Failure, Hello, Memory, Request

__all__ = ["DeviceServer"]

log = logging.getLogger(__name__)

# A front end that does not read its answers loses its connection, not everybody's device.
_SEND_SECONDS = 5
_FAREWELL_SECONDS = 0.5


class _FrontEnd:
    """A connection, and the memory shared over it."""

    def __init__(self, connection: socket.socket, pin: Callable[[Rows], object] | None) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self.channel = Channel(connection)
        self.is_gone = False
        self.begun = np.zeros(1, np.int64)
        self._pin = pin
        self._blocks: dict[int, Rows] = {}
        # Two, used in turns: the front end reads one while the device writes the other.
        self._answers: list[Block | None] = [None, None]
        self._turn = 0
        self._closing = threading.Lock()

    def argument(self, request: Request, descriptors: list[int]) -> Any:
        """What the device is called with. Raises ``EOFError`` if the connection was closed from this side meanwhile."""
        memory = request.memory
        if memory is None:
            return request.rows if request.tokens is None else request.tokens
        if memory.is_new:
            self._blocks[memory.number] = map_rows(descriptors[0], memory.shape, self._pin)
            os.close(descriptors[0])
        rows = self._blocks.get(memory.number)
        if rows is None:  # another thread has closed it
            raise EOFError("the connection is closed")
        return rows[request.first : request.first + request.count]

    def answer(self, seconds: float, result: Any, error: Exception | None) -> None:
        """Sends an outcome; images go into shared memory."""
        memory, descriptors, count = None, [], 0
        if isinstance(result, np.ndarray) and result.dtype == np.uint8:
            self._turn = 1 - self._turn
            block, count = self._answers[self._turn], len(result)
            is_new = block is None or block.capacity < count or block.rows.shape[1:] != result.shape[1:]
            if block is None or is_new:
                if block is not None:
                    block.close()
                block = self._answers[self._turn] = Block(self._turn, count, result.shape[1:], shared=True)
            if is_new and block.descriptor is not None:
                descriptors = [block.descriptor]
            block.rows[:count] = result
            memory, result = Memory(block.number, block.rows.shape, is_new), None
        text = None if error is None else f"{type(error).__name__}: {error}"
        self.channel.send(Answer(seconds, result, memory, count, text), descriptors)

    def close(self) -> None:
        """Forgets the connection; the memory goes when the device has let go of it. Thread-safe, and once is enough."""
        with self._closing:
            if self.is_gone:
                return
            self.is_gone = True
        self.channel.shut_down()
        self._blocks.clear()
        for block in self._answers:
            if block is not None:
                block.close()


class DeviceServer:
    """Serves front ends that connect to ``listener``, a listening Unix stream socket, with the device that
    ``device_factory`` opens.
    """

    def __init__(
        self,
        listener: socket.socket,
        device_factory: Callable[[], Device],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._device_factory = device_factory
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[_FrontEnd, Request, Any] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._device: Device | None = None
        self._reason: str | None = None
        self._front_ends: set[_FrontEnd] = set()
        self._is_stopping = False
        self._busy_since: float | None = None
        self._batches = 0

    @property
    def status(self) -> dict[str, Any]:
        """``state`` (``opening``, ``ready``, ``failed``), ``reason``, seconds that the batch in progress has been running,
        batches done, and what the device tells of itself.
        """
        since = self._busy_since
        device = self._device
        told = getattr(device, "status", None)
        return {
            "state": "failed" if self._reason else "opening" if device is None else "ready",
            "reason": self._reason,
            "busy_seconds": 0.0 if since is None else time.monotonic() - since,
            "batches": self._batches,
        } | (told() if callable(told) else {})

    def run(self) -> None:
        """Opens the device in this thread and serves until ``stop``. Raises what the factory raises, once the front ends
        have been told.
        """
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        try:
            device = self._device_factory()
        except BaseException as error:
            with self._changed:
                self._reason = f"the device cannot be opened: {error}"
                self._changed.notify_all()
                # Front ends that start beside this worker are given a moment to hear of it.
                self._changed.wait_for(lambda: self._is_stopping, _FAREWELL_SECONDS)
            self.stop()
            raise
        with self._changed:
            self._device = device
            self._changed.notify_all()
        try:
            while (work := self._inbox.get()) is not None:
                self._run(device, *work)
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends ``run`` after the batch in progress. Thread-safe."""
        with self._changed:
            self._is_stopping = True
            front_ends = list(self._front_ends)
            self._changed.notify_all()
        self._inbox.put(None)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for front_end in front_ends:
            front_end.close()

    def _run(self, device: Device, front_end: _FrontEnd, request: Request, argument: Any) -> None:
        if front_end.is_gone:
            return
        front_end.begun[0] += 1
        seconds, result, error = 0.0, None, None
        if self._clock() < request.deadline:
            self._busy_since = time.monotonic()
            outcome = execute(device, request.lane, argument, request.count)
            self._busy_since = None
            self._batches += 1
            seconds, result, error = outcome.seconds, outcome.result, outcome.error
        try:
            front_end.answer(seconds, result, error)
        except OSError as lost:
            log.warning("a front end has gone before its answer: %s", lost)
            front_end.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed
            threading.Thread(target=self._serve, args=(connection,), name="front end", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._device or self._reason or self._is_stopping)
            device, reason = None if self._is_stopping else self._device, self._reason
            front_end = _FrontEnd(connection, getattr(device, "pin", None))
            self._front_ends.add(front_end)
        try:
            if device is None:
                front_end.channel.send(Failure(reason or "the worker is stopping"))
                return
            front_end.channel.send(Hello(getattr(device, "info", None)))
            _, [descriptor] = front_end.channel.receive()
            front_end.begun = map_counter(descriptor)
            os.close(descriptor)
            while True:
                request, descriptors = front_end.channel.receive()
                self._inbox.put((front_end, request, front_end.argument(request, descriptors)))
        except (EOFError, OSError):
            pass  # it has gone
        finally:
            front_end.close()
            front_end.channel.close()
            with self._changed:
                self._front_ends.discard(front_end)
