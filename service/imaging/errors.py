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


class UnsupportedVariant(Exception):
    """A variant of a supported format that cannot be decoded; ``decode_image`` raises ``UnsupportedImageFormat``."""

    def __init__(self, variant: str, accepted: str) -> None:
        super().__init__(f"{variant} is not supported. Send {accepted}.")
        self.variant, self.accepted = variant, accepted
