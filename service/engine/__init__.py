"""The engine: requests to device batches and back. It knows nothing of HTTP, nor of which networks run."""

from service.engine.errors import DeadlineExceeded, DeviceFailed, EngineError, EngineStopped, QueueFull
from service.engine.inline import InlineEngine
from service.engine.lanes import LaneLimits
from service.engine.protocol import (
    Decoded,
    Device,
    Encoded,
    Engine,
    EngineObserver,
    EngineSnapshot,
    EngineState,
    Generated,
    GenerateItem,
    LaneSnapshot,
    Row,
    RowState,
    StepCallback,
    Stepped,
    Timing,
)

__all__ = [
    "DeadlineExceeded",
    "Decoded",
    "Device",
    "DeviceFailed",
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
    "Row",
    "RowState",
    "StepCallback",
    "Stepped",
    "Timing",
]
