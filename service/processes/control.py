"""What the supervisor and its children say to each other: a socket pair, one JSON object a line.

::

    supervisor                                  child
    {"start": {...}}                  ──>       its settings and places, once: never in arguments, where all may read
                                      <──       {"status": {...}}   every beat, and when asked
    {"do": "status"}                  ──>
    {"do": "drain"}                   ──>       front end: readiness down, every answer ends its connection
    {"do": "close"}                   ──>       front end: take the backlog, finish, exit
    {"do": "stop"}                    ──>       worker: exit
    (end of file: the other has died)

A child whose supervisor has died, even by SIGKILL, ends itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from service.settings import Settings

__all__ = [
    "ControlChannel",
    "FrontEndStart",
    "WorkerStart",
    "beat_seconds",
    "decode_message",
    "encode_message",
    "pack_settings",
    "unpack_settings",
]

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
    """``address`` is the path its socket is to have; ``lifeline`` a descriptor that ends when nobody needs the worker;
    ``batch_limits`` are what the worker before found, so that its replacement is there sooner.
    """

    name: str
    settings: Mapping[str, Any]
    device: str
    address: str
    lifeline: int
    batch_limits: Mapping[str, int] | None = None


class ControlChannel:
    """One end, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Takes over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES))

    def send(self, message: Mapping[str, Any]) -> None:
        """Never waits; what a dead process was to hear is dropped."""
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
        """Ends it."""
        self._writer.close()


def encode_message(message: Mapping[str, Any]) -> bytes:
    """A message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode_message(line: bytes) -> dict[str, Any]:
    """A line as a message."""
    message: dict[str, Any] = json.loads(line)
    return message


def pack_settings(settings: Settings) -> dict[str, Any]:
    """All settings as JSON values, secrets in clear."""
    secrets = {
        "api_keys": [key.get_secret_value() for key in settings.api_keys],
        "redis_url": None if settings.redis_url is None else settings.redis_url.get_secret_value(),
    }
    return settings.model_dump(mode="json") | secrets


def unpack_settings(values: Mapping[str, Any]) -> Settings:
    """The settings of ``pack_settings``; the environment has no say any more, since every one is given."""
    return Settings(**values)


def beat_seconds(settings: Settings) -> float:
    """How often a child says how it is."""
    return min(1.0, settings.heartbeat_seconds / 4)
