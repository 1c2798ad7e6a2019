"""The engine: requests to device batches and back. It knows nothing of HTTP, nor of which networks run."""

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
