"""The models of a running service, with the interface of :class:`~service.cli.local_models.LocalModels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from service.client import Encoded, Generated, Picture, Reconstruction, TiTokClient
from service.client.calls import Format, GenerateOptions


class RemoteModels:
    """The models of the service at ``url``. Raises ``TiTokError``."""

    def __init__(self, url: str, *, api_key: str | None) -> None:
        self._client = TiTokClient(url, api_key=api_key)

    def encode(self, images: Sequence[bytes]) -> list[Encoded]:
        """Tokens of image files, split into requests."""
        return [self._client.encode(images[0])] if len(images) == 1 else self._client.encode(images)

    def decode(self, tokens: str | Sequence[int], *, media_type: str) -> Picture:
        """The image of a code, or of K token ids."""
        return self._client.decode(tokens, format=_format(media_type))

    def generate(self, label: int | str | None, *, seed: int | None, preset: str, media_type: str) -> Generated:
        """A generated image of a class."""
        options: GenerateOptions = {"preset": preset, "format": _format(media_type)}
        if seed is not None:
            options["seed"] = seed
        return self._client.generate(label, **options)[0]

    def reconstruct(self, image: bytes, *, media_type: str) -> Reconstruction:
        """An image after encoding and decoding, with its quality."""
        result = self._client.reconstruct(image)
        if result.picture.content_type == media_type:
            return result
        return replace(result, picture=self._client.decode(result, format=_format(media_type)))


def _format(media_type: str) -> Format:
    return cast("Format", media_type.removeprefix("image/"))
