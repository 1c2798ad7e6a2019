"""The engine: batches requests for one or more devices. It knows neither HTTP nor the networks.

A *lane* is the queue of one operation: encode, decode or generate. A *link* is the connection to a worker, and a worker
owns one device. See ``service/engine/batching.py`` for the flow of a request.
"""

from service.engine.errors import DeadlineExceeded, DeviceFailed, EngineError, EngineStopped, QueueFull, WorkerCrashed
from service.engine.inline import InlineEngine
from service.engine.lanes import LaneLimits
from service.engine.protocol import (
    BatchReport,
    Decoded,
    Device,
    Encoded,
    EncodeTicket,
    Engine,
    EngineObserver,
    EngineSnapshot,
    EngineState,
    Generated,
    GenerateItem,
    LaneSnapshot,
    RowState,
    StepCallback,
    Stepped,
    Timing,
)

__all__ = [
    "BatchReport",
    "DeadlineExceeded",
    "Decoded",
    "Device",
    "DeviceFailed",
    "EncodeTicket",
    "Encoded",
    "Engine",
    "EngineError",
    "EngineObserver",
    "EngineSnapshot",
    "EngineState",
    "EngineStopped",
    "GenerateItem",
    "Generated",
    "InlineEngine",
    "LaneLimits",
    "LaneSnapshot",
    "QueueFull",
    "RowState",
    "StepCallback",
    "Stepped",
    "Timing",
    "WorkerCrashed",
]
