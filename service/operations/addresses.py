"""The address of an image, which is its code."""

from __future__ import annotations

from service.inference.model_info import ModelInfo

__all__ = ["image_address"]


def image_address(info: ModelInfo, code: str, extension: str, *, size: int | None, quality: int | None) -> str:
    """Path and query of ``GET /v1/images/...``; the same image at the same ``size`` and ``quality`` has only this one."""
    asked = {"size": None if size == info.image_size else size, "quality": quality}
    query = "&".join(f"{name}={value}" for name, value in asked.items() if value is not None)
    return f"/v1/images/{info.name}@{info.revision}/{code}.{extension}{'?' if query else ''}{query}"
