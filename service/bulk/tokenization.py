"""``titok tokenize``: image files to tokens, or to latents."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from models.codes.latents import to_dtype
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from models.runtime.calibration import calibrate
from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.device_names import select_device
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.batches import submit_in_parts
from service.bulk.crops import Crops
from service.bulk.entries import Entry
from service.bulk.errors import BrokenImage, BulkError
from service.bulk.formats import TokenLayout, check_format, token_files
from service.bulk.job import Job, Task
from service.bulk.manifest import VERSION, RunSettings, latents_settings, source_settings, tokenizer_settings
from service.bulk.shards import Row, Shard
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits
from service.inference.memory_fit import largest_that_fits, record_graphs

Pixels = npt.NDArray[np.uint8]
Tokens = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """The number format of latents. With ``seed`` they are samples of a VAE's posterior; None: its mean."""

    dtype: Literal["float32", "float16"]
    seed: int | None = None

    def seeds(self, key: str, views: int) -> list[int] | None:
        """A seed for each crop of an image, whatever batch or machine encodes it."""
        if self.seed is None:
            return None
        texts = [f"{self.seed}/{key}/{view}" for view in range(views)]
        digests = [hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest() for text in texts]
        return [int.from_bytes(digest, "little") >> 1 for digest in digests]


@dataclass(frozen=True, kw_only=True)
class TokenizeJob(Job[bytes]):
    """The options of ``titok tokenize``.

    ``max_pixels``: limit for one image. ``preprocessing``: how images are decoded. ``length``: tokens of a crop, the first
    ones; None: all. ``latents``: vectors instead of token ids.
    """

    format: str
    crops: Crops
    max_pixels: int
    preprocessing: PreprocessingOptions = PUBLISHED
    length: int | None = None
    latents: LatentOptions | None = None

    @property
    def views(self) -> int:
        """See ``Job``."""
        return self.crops.count

    def check(self) -> None:
        """See ``Job``."""
        check_format(self.format, latents=self.latents is not None)
        if self.latents is not None and self.length is not None:
            raise BulkError("latents have no shorter length")

    def load(self) -> "Tokenization":
        """See ``Job``."""
        device = select_device(self.device)
        job = self.on(device.type)
        batch = job.batch_images * job.views
        tokenizer = load_tokenizer(job.tokenizer, weights=job.weights, device=str(device), dtype=job.dtype)
        if device.type == "cpu":
            if job.latents is None:
                tokenizer.select_runtime(job.threads)
                calibrate(tokenizer, batch, threads=1)  # each core encodes batches of its own
            return Tokenization(job, tokenizer)
        limit = record_graphs(tokenizer.encoder, lambda limit: {1, limit}, batch, CudaRecorder(device), device)
        try_batch = partial(calibrate, tokenizer) if job.latents is None else partial(_encode_latents, tokenizer)
        limit = largest_that_fits(try_batch, limit, tokenizer.encoder, device)
        return Tokenization(replace(job, batch_size=limit), tokenizer)


class Tokenization(Task[Pixels, Tokens]):
    """Tokenizes the crops of image files. Raises ``BulkError`` if token ids do not fit uint16, and for a length that the
    tokenizer does not decode.
    """

    def __init__(self, job: TokenizeJob, tokenizer: Tokenizer) -> None:
        self.job: TokenizeJob = job
        self.settings = _settings(job, tokenizer)
        self.device = tokenizer.device
        self.tokenizer = tokenizer
        self._layout = TokenLayout(job.views, self.settings["tokenizer"]["num_tokens"], job.source.labels)
        if job.latents is not None:
            self._layout = self._layout._replace(dtype=job.latents.dtype, token_size=tokenizer.token_size)
            if job.latents.seed is not None and tokenizer.is_discrete:
                raise BulkError(f"{tokenizer.name} is no VAE, so its latents are not sampled: leave the seed out")

    def prepare(self, entry: Entry) -> Pixels:
        """An entry's crops uint8 [crops, S, S, 3]. Raises ``BrokenImage``."""
        job, size = self.job, self.tokenizer.image_size
        limits = MediaLimits(max_pixels=job.max_pixels)
        try:
            decoded = decode_image(entry.read(), limits=limits, options=job.preprocessing, size=size)
            return job.crops.take(decoded, size)
        except (ImageError, ValueError) as error:
            raise BrokenImage(str(error)) from None

    def submit(self, prepared: Sequence[Pixels]) -> Callable[[], Tokens]:
        """Crops -> uint16 [B, crops, K], or the encoder's latents float32 [B, crops, K, C]. See ``Task``."""
        size, views = self.tokenizer.image_size, self.job.views
        shape = (len(prepared), views, size, size, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for place, crops in zip(images.numpy(), prepared, strict=True):
            place[...] = crops
        encode = self.tokenizer.submit_encode if self.job.latents is None else self.tokenizer.submit_latents
        pending = submit_in_parts(encode, images.flatten(0, 1), self.device)
        if self.job.latents is not None:
            return lambda: pending().numpy().reshape(*shape[:2], *self.tokenizer.latent_format.encoded_shape)
        length = self._layout.num_tokens
        return lambda: pending().numpy()[:, :length].astype(np.uint16).reshape(len(prepared), views, length)

    def finish(self, entry: Entry, output: Tokens) -> Row:
        """See ``Task``."""
        if (latents := self.job.latents) is not None:
            seeds = latents.seeds(entry.key, self.job.views)
            output = to_dtype(self.tokenizer.latent_format.latents_of(output, seeds), latents.dtype)
        return Row(entry.key, entry.label, output)

    def files(self, shard: Shard) -> dict[str, bytes]:
        """See ``Task``."""
        return token_files(shard, self.job.format, self._layout)


def _encode_latents(tokenizer: Tokenizer, batch: int) -> None:
    size = tokenizer.image_size
    tokenizer.latents(torch.zeros(batch, size, size, 3, dtype=torch.uint8))


def _settings(job: TokenizeJob, tokenizer: Tokenizer) -> RunSettings:
    """Everything that determines the bytes of the output."""
    encoder, latents = tokenizer.precision.encoder, job.latents
    revision = job.preprocessing.revision_of(tokenizer.revision)
    output: dict[str, Any] = {"dtype": "uint16"}
    if latents is not None:
        output = {"dtype": latents.dtype, "shape": tokenizer.latent_format.shape}
    if latents is not None and latents.seed is not None:
        output["seed"] = latents.seed
    return {
        "version": VERSION,
        "source": source_settings(job.source),
        "tokenizer": tokenizer_settings(tokenizer, revision, job.length)
        if latents is None
        else latents_settings(tokenizer, revision),
        "preprocessing": {
            "version": job.preprocessing.version,
            "crops": job.crops.mode,
            "flip": job.crops.flip,
            "views": job.views,
            "max_pixels": job.max_pixels,
        },
        "computed_in": {
            "dtype": encoder.name,
            # Below float32 the other images of a batch may change a token, and always the last bits of latents.
            "batch_size": None if encoder.is_batch_invariant and latents is None else job.batch_images * job.views,
        },
        "output": {"format": job.format, **output, "shard_images": job.shard_images},
    }
