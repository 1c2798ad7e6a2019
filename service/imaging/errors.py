"""Why an image cannot be decoded."""

from __future__ import annotations

from service.errors import ServiceError


class ImageError(ServiceError):
    """Base class of the errors of ``decode_image``."""


class UndecodableImage(ImageError):
    """Empty, truncated, corrupt, or not an image."""


class UnsupportedImageFormat(ImageError):
    """An image of a known format that is not supported."""


class ImageTooLarge(ImageError):
    """More pixels than the limit."""
