"""Models loaded in this process, with the methods and results of ``TiTokClient``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from models import load_generator, load_tokenizer
from models.codes.code_format import CodeFormat
from models.codes.latents import to_dtype
from service.client.calls import Class, Dtype, Format, GenerateOptions
from service.client.results import Encoded, Generated, Latents, Picture, Reconstruction
from service.imaging.decoding import DecodedImage, decode_image
from service.imaging.encoding import encode_image
from service.imaging.limits import MediaLimits
from service.imaging.quality import measure_quality
from service.operations.classes import ClassIndex
from service.operations.generation import consecutive_seeds
from service.settings import Settings

if TYPE_CHECKING:
    from models import Generator, Tokenizer


class LocalModels:
    """A tokenizer and its generator on the CPU, loaded on first use.

    Raises ``CheckpointError``, ``UnknownVariantError``, ``CodeError``, ``ValueError`` or ``ServiceError``.
    """

    def __init__(
        self, name: str, *, weights: str | None, generator_weights: str | None = None, settings: Settings
    ) -> None:
        self._name = name
        self._weights, self._generator_weights = weights, generator_weights
        self._limits, self._options = MediaLimits(max_pixels=settings.max_pixels), settings.preprocessing

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._name, weights=self._weights)

    @cached_property
    def _generator(self) -> Generator:
        return load_generator(self._name, weights=self._generator_weights)

    def encode(self, image: bytes, *, length: int | None = None) -> Encoded:
        """Tokens of an image file, with ``length`` only the first ones."""
        decoded = self._decoded(image)
        tokens = self._tokens(decoded, length)
        return Encoded(**self._tokenized(tokens), original_size=decoded.original_size, cached=False)

    def latents(self, image: bytes, *, dtype: Dtype = "float32", seed: int | None = None) -> Latents:
        """Vectors of an image file: a VAE's tokens, the posterior's mean or a sample by seed; else before quantization."""
        crop = self._decoded(image).crop(self._tokenizer.image_size)
        latents = self._tokenizer.latents(crop[None], seeds=None if seed is None else [seed])[0].numpy()
        data = to_dtype(latents, dtype).tobytes()
        return Latents(data=data, shape=latents.shape, dtype=dtype, model=self._tokenizer.name)

    def decode(self, tokens: str | Sequence[int] | Latents, *, format: Format) -> Picture:  # noqa: A002
        """The image of a code, of token ids, or of a VAE's latents."""
        if isinstance(tokens, Latents):
            if self._tokenizer.is_discrete:
                raise ValueError(f"{self._tokenizer.name} decodes token ids, not latents")
            return _picture(self._pixels(self._tokenizer.latent_format.check(tokens.array())), format)
        code_format = self._code_format
        ids = code_format.from_text([tokens]) if isinstance(tokens, str) else np.array([tokens], np.int64)
        return _picture(self._pixels(ids), format)

    def generate(self, class_: Class, *, n: int = 1, **options: Unpack[GenerateOptions]) -> list[Generated]:
        """``n`` generated images of a class, by ``seed``, ``preset``, ``steps`` and ``format``."""
        classes = ClassIndex(self._generator.class_names, model=self._generator.name)
        index = classes.resolve(class_)
        changes = {"steps": options["steps"]} if "steps" in options else {}
        settings = self._generator.settings(options["preset"], **changes)
        seed = options.get("seed", secrets.randbelow(2**32))
        seeds = consecutive_seeds(seed, n)
        tokens = self._generator.generate([index] * n, seeds=seeds, preset=options["preset"], **changes).numpy()
        return [
            Generated(
                **self._tokenized(row[None]),
                index=position,
                seed=seeds[position],
                class_id=index,
                class_name=None if index is None else classes.names[index][0],
                generator_revision=self._generator.revision,
                settings=asdict(settings),
                picture=_picture(self._pixels(row[None]), options["format"]),
            )
            for position, row in enumerate(tokens)
        ]

    def reconstruct(self, image: bytes, *, length: int | None = None) -> Reconstruction:
        """An image after encoding and decoding, with its quality."""
        decoded = self._decoded(image)
        crop = decoded.crop(self._tokenizer.image_size)
        if self._tokenizer.is_discrete or length is not None:
            tokens = self._tokens(decoded, length)
        else:
            tokens = self._tokenizer.latents(crop[None]).numpy()
        pixels = self._pixels(tokens)
        psnr, ssim = measure_quality(pixels, crop)
        return Reconstruction(
            **self._tokenized(tokens),
            original_size=decoded.original_size,
            psnr=psnr,
            ssim=ssim,
            picture=_picture(pixels, "png"),
        )

    def _decoded(self, image: bytes) -> DecodedImage:
        return decode_image(image, limits=self._limits, options=self._options, size=self._tokenizer.image_size)

    @property
    def _code_format(self) -> CodeFormat:
        if not self._tokenizer.is_discrete:
            raise ValueError(f"{self._tokenizer.name} is a VAE: its tokens are vectors; use --latents FILE.npy")
        return self._tokenizer.code_format

    def _tokens(self, image: DecodedImage, length: int | None) -> npt.NDArray[np.int64]:
        code_format = self._code_format
        if length is not None:
            code_format = code_format.of_length(length)
        crop = image.crop(self._tokenizer.image_size)
        tokens: npt.NDArray[np.int64] = self._tokenizer.encode(crop[None]).numpy()
        return tokens[:, : code_format.num_tokens]

    def _tokenized(self, tokens: npt.NDArray[Any]) -> dict[str, Any]:
        """The fields of ``Tokenized``, of tokens int64 [1, K]; of a VAE without tokens."""
        is_discrete = self._tokenizer.is_discrete
        return {
            "tokens": tuple(tokens[0].tolist()) if is_discrete else (),
            "code": self._tokenizer.code_format.to_text(tokens)[0] if is_discrete else "",
            "model": self._tokenizer.name,
            "revision": self._options.revision_of(self._tokenizer.revision),
        }

    def _pixels(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = self._tokenizer.decode(tokens).numpy()[0]
        return pixels


def _picture(pixels: npt.NDArray[np.uint8], format_: Format) -> Picture:
    media_type = f"image/{format_}"
    return Picture(data=encode_image(pixels, media_type), content_type=media_type)
