"""Messages between the supervisor and its child processes: one JSON object per line over a socket pair.

::

    supervisor                                  child
    {"start": {...}}                  ──>       once; settings are not arguments, which every user can read
                                      <──       {"status": {...}}   at every heartbeat, and on request
    {"do": "status"}                  ──>
    {"do": "drain"}                   ──>       front end: not ready, every response closes its connection
    {"do": "close"}                   ──>       front end: serve the backlog, finish, exit
    {"do": "stop"}                    ──>       worker: exit
    (end of file: the other process has died)

A child whose supervisor has died, even by SIGKILL, exits.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from service.settings import Settings

LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class FrontEndStart:
    """``listener`` is a descriptor, ``workers`` are socket paths by device."""

    name: str
    settings: Mapping[str, Any]
    listener: int
    workers: Mapping[str, str]
    metrics_folder: str
    metrics_place: str


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """``address`` is the path of its socket; ``liveness_pipe`` a descriptor that reaches end of file when the supervisor and
    all front ends have exited; ``measured_limits`` the batch limits of an earlier worker, which makes the start
    faster.
    """

    name: str
    settings: Mapping[str, Any]
    device: str
    address: str
    liveness_pipe: int
    measured_limits: Mapping[str, int] | None = None


class ControlChannel:
    """One end of the socket pair, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Opens a channel on one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES))

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends without waiting; messages to a dead process are dropped."""
        if not self._writer.is_closing():
            self._writer.write(encode_message(message))

    async def receive(self) -> dict[str, Any] | None:
        """The next message, or None when the other end has closed."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return decode_message(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Closes the socket."""
        self._writer.close()


def encode_message(message: Mapping[str, Any]) -> bytes:
    """Encodes a message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode_message(line: bytes) -> dict[str, Any]:
    """Decodes a line."""
    message: dict[str, Any] = json.loads(line)
    return message


def pack_settings(settings: Settings) -> dict[str, Any]:
    """Serializes all settings as JSON values, with secrets in clear text."""
    secrets = {
        "api_keys": [key.get_secret_value() for key in settings.api_keys],
        "redis_url": None if settings.redis_url is None else settings.redis_url.get_secret_value(),
    }
    return settings.model_dump(mode="json") | secrets


def unpack_settings(values: Mapping[str, Any]) -> Settings:
    """Restores the settings of ``pack_settings``. Every field is set, so the environment is ignored."""
    return Settings(**values)


def heartbeat_interval(settings: Settings) -> float:
    """Seconds between the status messages of a child."""
    return min(1.0, settings.heartbeat_seconds / 4)
