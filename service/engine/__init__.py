"""The engine: batches requests for one or more devices. It knows neither HTTP nor the networks.

A *lane* is the queue of one operation: encode, decode or generate. A *link* is the connection to a worker, and a worker
owns one device. See ``service/engine/batching.py`` for the flow of a request.
"""

from service.engine.batching import EncodeTicket, Engine
from service.engine.errors import DeadlineExceeded, DeviceFailed, EngineError, EngineStopped, QueueFull, WorkerCrashed
from service.engine.inline import InlineLink
from service.engine.jobs import Link
from service.engine.lanes import LaneLimits
from service.engine.protocol import (
    EngineObserver,
    EngineState,
    EngineTokens,
    GenerateItem,
    LaneSnapshot,
    StepCallback,
)

__all__ = [
    "DeadlineExceeded",
    "DeviceFailed",
    "EncodeTicket",
    "Engine",
    "EngineError",
    "EngineObserver",
    "EngineState",
    "EngineStopped",
    "EngineTokens",
    "GenerateItem",
    "InlineLink",
    "LaneLimits",
    "LaneSnapshot",
    "Link",
    "QueueFull",
    "StepCallback",
    "WorkerCrashed",
]
