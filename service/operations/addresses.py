"""URLs of images by their codes."""

from __future__ import annotations

from service.inference.model_info import ModelInfo


def image_address(info: ModelInfo, code: str, extension: str, *, size: int | None, quality: int | None) -> str:
    """Canonical path and query of ``GET /v1/images/...`` for an image at a ``size`` and ``quality``."""
    parameters = {"size": None if size == info.image_size else size, "quality": quality}
    query = "&".join(f"{name}={value}" for name, value in parameters.items() if value is not None)
    return f"/v1/images/{info.name}@{info.revision}/{code}.{extension}{'?' if query else ''}{query}"
