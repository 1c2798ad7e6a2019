"""What a process holds, by the kernel's account."""

from __future__ import annotations

from pathlib import Path

__all__ = ["memory_of"]


def memory_of(pid: int | str = "self", name: str = "VmRSS") -> int:
    """Bytes: ``VmRSS`` resident now, ``VmHWM`` at most since the peak was last cleared."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
