"""Resolves the name of a device."""

import torch


def select_device(name: str, *, index: int = 0) -> torch.device:
    """The device ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``; a CUDA device becomes the current one.

    ``index`` is that of a name without one: streams, graphs and ``torch.cuda.set_device`` need an index.

    Raises ``ValueError`` for another name, and for a device that is not there.
    """
    available = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if available else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name!r} is not a device: use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    device = torch.device("cuda", index if device.index is None else device.index)
    count = torch.cuda.device_count() if available else 0
    if device.index >= count:
        found = f"only {count} CUDA devices" if count else "no CUDA device"
        raise ValueError(f"PyTorch {torch.__version__} finds {found} here, not {device}")
    torch.cuda.set_device(device)
    return device
