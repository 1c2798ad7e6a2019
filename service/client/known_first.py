"""Images of which only those that the service does not know are sent.

::

    images ──> digests ──> lookup ──> known ─────────────────────┐
                              └─────> the rest ──> upload ──────> merged, in order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.client import calls
from service.client.batches import Batch
from service.client.calls import Call
from service.client.images import image_digest
from service.client.results import Encoded

__all__ = ["Known", "KnownFirst"]

Known = Mapping[str, Encoded | None]
"""By digest; None: the service does not know it, or does not tell."""


class KnownFirst:
    """The calls for one batch of images, one after the other."""

    def __init__(self, batch: Batch[bytes]) -> None:
        self._digests = [image_digest(image) for image in batch.items]
        self._images: dict[str, tuple[int, bytes]] = {}  # each once, with its first place
        for digest, place, image in zip(self._digests, batch.places, batch.items, strict=True):
            self._images.setdefault(digest, (place, image))

    def lookup(self) -> Call[list[tuple[str, Encoded | None]]]:
        """Asks what is known."""
        return calls.lookup(list(self._images))

    def upload(self, known: Known) -> Call[list[Encoded]] | None:
        """Sends the rest, if there is any."""
        unknown = self._unknown(known)
        images = [self._images[digest] for digest in unknown]
        return calls.encode_batch([data for _, data in images], [place for place, _ in images]) if unknown else None

    def merge(self, known: Known, uploaded: Sequence[Encoded]) -> list[Encoded]:
        """The tokens of all images, in their order."""
        found = {**known, **dict(zip(self._unknown(known), uploaded, strict=True))}
        return [image for digest in self._digests if (image := found[digest]) is not None]

    def _unknown(self, known: Known) -> list[str]:
        return [digest for digest in self._images if known.get(digest) is None]
