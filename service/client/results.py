"""Results of calls, as frozen dataclasses."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image


_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file: its bytes and its media type."""

    data: bytes = field(repr=False)
    content_type: str

    def save(self, path: str | Path) -> None:
        """Writes the file; in another format if the path ends in that of one, which requires Pillow."""
        media_type = _MEDIA_TYPES.get(Path(path).suffix.lower(), self.content_type)
        if media_type == self.content_type:
            Path(path).write_bytes(self.data)
        else:
            options = {} if media_type == "image/png" else {"quality": 90}
            self.image().save(path, media_type.removeprefix("image/"), **options)

    def image(self) -> Image.Image:
        """The decoded image. Requires Pillow."""
        from PIL import Image

        image = Image.open(io.BytesIO(self.data))
        image.load()
        return image

    def array(self) -> npt.NDArray[np.uint8]:
        """Pixels, uint8 [H, W, 3]. Requires Pillow and NumPy."""
        import numpy as np

        return np.array(self.image().convert("RGB"), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """An image's token ids and their text form, with the tokenizer that made them."""

    tokens: tuple[int, ...]
    code: str
    model: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class Encoded(Tokenized):
    """The tokens of an image. ``original_size`` is (width, height); ``cached``: the service had them in its cache."""

    original_size: tuple[int, int]
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Latents:
    """An image's vectors: ``data`` has the numbers [K, C] = ``shape``, little-endian, row by row; ``dtype`` is float32 or
    float16. ``model`` and ``revision`` name the tokenizer that made them, if that is known.
    """

    data: bytes = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    model: str | None = None
    revision: str | None = None

    def array(self) -> npt.NDArray[np.floating[Any]]:
        """The numbers, [K, C]. Requires NumPy."""
        import numpy as np

        kind = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(self.data, kind).reshape(self.shape).astype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class EncodedLatents(Latents):
    """The latents of an image. ``original_size`` is (width, height); ``cached``: the service had them in its cache."""

    original_size: tuple[int, int]
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Tokenized):
    """An image after encoding and decoding; a VAE has no tokens, and an empty code. ``psnr`` in dB (None: no difference)
    and ``ssim`` compare it with the tokenizer's input.
    """

    original_size: tuple[int, int]
    psnr: float | None
    ssim: float
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Mixed(Tokenized):
    """An image mixed from several codes."""

    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Generated(Tokenized):
    """A generated image. Equal class, settings, seed and generator revision give equal tokens."""

    index: int
    seed: int
    class_id: int | None
    class_name: str | None
    generator_revision: str
    settings: Mapping[str, Any]
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Step:
    """An image after ``step`` of ``steps`` sampling steps. Masked tokens are None; ``picture`` is a preview."""

    index: int
    step: int
    steps: int
    tokens: tuple[int | None, ...]
    known: int
    picture: Picture | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request."""

    max_body_bytes: int
    max_pixels: int
    max_images: int
    max_generate: int


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """The generator of a tokenizer; ``presets`` are its sampling settings by name."""

    revision: str
    num_classes: int
    presets: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A tokenizer of the service. ``min_tokens`` of an image's ``num_tokens`` suffice to decode it. ``kind`` is ``vq``, or
    ``vae``, which has no codes; ``latents`` has the ``shape`` [K, C].
    """

    id: str
    revision: str
    kind: str
    image_size: int
    num_tokens: int
    min_tokens: int
    codebook_size: int
    bits_per_token: int
    code_bytes: int
    code_characters: int
    latents: Mapping[str, Any]
    precision: Mapping[str, str]
    generator: GeneratorInfo | None
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class ImageClass:
    """A class of the generator, with its id, its first name and all of its names."""

    id: int
    name: str
    names: tuple[str, ...]
