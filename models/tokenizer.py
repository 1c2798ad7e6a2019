"""Image tokenizer with loaded weights: uint8 images to token ids, and back.

::

    from models import load_tokenizer
    tokenizer = load_tokenizer("titok-mini-32")
    ids = tokenizer.encode(images)      # uint8 [B, S, S, 3] -> int64 [B, K]
    images = tokenizer.decode(ids)      # int64 [B, K] -> uint8 [B, S, S, 3]

A prefix-decodable tokenizer also decodes the first L ids of an image, ``ids[:, :L]``.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Ids, Latents, Pixels
from models.checkpoints.loading import Checkpoint, HubFile, open_checkpoint
from models.checkpoints.registry import TOKENIZERS
from models.checkpoints.tokenizer_network import load_tokenizer_network
from models.codes.code_format import CodeFormat, lengths_of
from models.codes.latents import LatentFormat
from models.errors import UnknownVariantError
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.titok import TiTok
from models.networks.tokenizer_functions import Pending, TokenizerFunctions
from models.preprocessing_options import PREPROCESSING_VERSION
from models.runtime.calibration import calibrate
from models.runtime.cpu_threads import torch_threads
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.precision import Precision
from models.runtime.selection import TORCH, Runtime

Images: TypeAlias = Tensor | Pixels
_IMAGES_BEFORE_TUNING = 32  # encoding or decoding so many takes about as long as tuning


class Tokenizer:
    """A tokenizer network with its weights on a device.

    Attributes: ``name``; ``digest`` of the weights; ``revision``, which changes whenever ids may; ``image_size`` S;
    ``num_tokens`` K; ``min_tokens``, how many of them :meth:`decode` needs; ``codebook_size`` V (0 for the VAE variants,
    whose tokens are vectors); ``token_size`` C; ``patch_size``, the side of the decoder's patches in pixels; ``source`` of
    the weights; ``network``, with its weights, in evaluation mode; ``encoder`` and ``decoder``, the functions that run on
    the device (``models.runtime.cuda_graphs``); ``tolerance``, the margin of squared distances, relative to the latents'
    scale, below which an image is re-encoded unbatched (``models.runtime.rounding_tolerance``).
    """

    def __init__(
        self,
        network: TiTok | MaskGITVQGAN,
        *,
        name: str,
        digest: str,
        source: str,
        device: torch.device,
        dtype: str,
        runtime: Runtime = TORCH,
    ) -> None:
        self.name, self.digest, self.source, self.device = name, digest, source, device
        self.precision = Precision.of(dtype, device)
        self.network = network.eval().requires_grad_(False).to(device)
        self.network.set_compute_dtype(encoder=self.precision.encoder.dtype, decoder=self.precision.decoder.dtype)
        config = network.config
        if isinstance(config, MaskGITVQGANConfig):
            self.is_discrete = True
            self.num_tokens, self.token_size = config.grid_size**2, config.latent_channels
            self.patch_size, self.min_tokens = config.downsampling, self.num_tokens
        else:
            self.is_discrete = config.quantize_mode == "vq"
            self.num_tokens, self.token_size = config.num_latent_tokens, config.token_size
            self.patch_size = config.decoder_patch_size
            self.min_tokens = config.min_latent_tokens or self.num_tokens
        self.codebook_size = config.codebook_size if self.is_discrete else 0
        self.image_size = config.image_size
        self.revision = f"{digest[:12]}-p{PREPROCESSING_VERSION}{self.precision.encoder.suffix}"
        self._functions = TokenizerFunctions(
            self.network,
            digest=digest,
            device=device,
            precision=self.precision,
            runtime=runtime,
            image_shape=self._image_shape,
            token_shape=(self.num_tokens,) if self.is_discrete else self.latent_format.shape,
            is_prefix_decodable=self.min_tokens < self.num_tokens,
        )
        self._images = 0  # that were encoded or decoded

    @property
    def encoder(self) -> GraphedFunction:
        """See the class."""
        return self._functions.encoder

    @property
    def decoder(self) -> GraphedFunction:
        """See the class."""
        return self._functions.decoder

    @property
    def tolerance(self) -> float:
        """See the class."""
        return self._functions.tolerance

    @tolerance.setter
    def tolerance(self, tolerance: float) -> None:
        self._functions.tolerance = tolerance

    @property
    def runtimes(self) -> dict[str, str]:
        """What computes ``encoder`` and ``decoder``: ``torch`` or ``openvino``."""
        return self._functions.runtimes

    @property
    def is_selectable(self) -> bool:
        """Whether :meth:`select_runtime` may select something else than PyTorch."""
        return self._functions.is_selectable

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @property
    def code_format(self) -> CodeFormat:
        """The packed format of this tokenizer's ids. Raises ``TypeError`` for a VAE variant."""
        self._require_codes()
        return CodeFormat(self.num_tokens, self.codebook_size, self.min_tokens)

    @property
    def latent_format(self) -> LatentFormat:
        """The format of this tokenizer's latents."""
        return LatentFormat(self.num_tokens, self.token_size, is_posterior=not self.is_discrete)

    @property
    def codebook(self) -> Tensor:
        """The codes of all ids, as the decoder looks them up: float32 [V, C]. Raises ``TypeError`` for a VAE variant."""
        self._require_codes()
        codes: Tensor = self.network.quantize.codebook
        return codes.detach().cpu().clone()

    @property
    def num_parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def encode(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3] -> ids int64 [B, K].

        In float32 ids are batch-invariant: an image with a decision so close that batch rounding can change it is
        re-encoded unbatched. In ``tf32x3`` it is re-encoded in float32, so that the ids are float32's.

        Raises ``ValueError`` for another shape or dtype, ``TypeError`` for a VAE variant.
        """
        return self.submit_encode(images)()

    @torch.inference_mode()
    def submit_encode(self, images: Images) -> Pending:
        """Starts to encode (see :meth:`encode`); the returned function waits for the ids.

        On a CUDA device the next batch can be submitted meanwhile, and copies from pinned memory overlap with
        computation. ``images`` must not change until the ids have arrived.
        """
        self._require_codes()
        pixels = self._as_pixels(images)
        if len(pixels) == 0:
            return lambda: torch.empty(0, self.num_tokens, dtype=torch.int64)
        self._count(len(pixels))
        return self._functions.submit_encode(pixels)

    def tune(self, largest_batch: int = 16) -> None:
        """Selects the runtime and measures ``tolerance``, for batches of up to ``largest_batch`` images.

        Takes about two seconds. On a CPU it also happens once 32 images have been encoded or decoded.
        """
        self._functions.is_calibrated = True  # also while it is being done, for other threads
        self.select_runtime(torch.get_num_threads())
        calibrate(self, largest_batch)

    def _count(self, images: int) -> None:
        self._images += images
        is_due = self._images > _IMAGES_BEFORE_TUNING and not self._functions.is_calibrated
        if is_due and self.device.type == "cpu":
            self.tune()

    def select_runtime(self, threads: int) -> None:
        """Selects what computes batches on a CPU (``models.runtime.selection``); later calls do nothing.

        ``threads``: how many OpenVINO has, and at most so many threads may call the tokenizer at once.
        """
        self._functions.select_encoder(threads)
        self._functions.select_decoder(threads)

    def select_decoder(self, threads: int) -> None:
        """As :meth:`select_runtime` for decoding alone. The caller then calls :meth:`select_encoder`, too."""
        self._functions.select_decoder(threads)
        self._functions.is_calibrated = True  # not after 32 images

    def select_encoder(self, threads: int, largest_batch: int) -> None:
        """As :meth:`select_runtime` for encoding alone, and measures ``tolerance``.

        May be called in another thread while the tokenizer is used: until it returns PyTorch encodes.
        """
        selected = copy(self)
        selected._functions = self._functions.with_unselected_encoder()
        with torch_threads(threads):
            selected._functions.select_encoder(threads)
            calibrate(selected, largest_batch)
        self._functions = selected._functions

    def calibrate(self, images: Images, sizes: Iterable[int], *, seconds: float) -> None:
        """Measures ``tolerance`` on this device: the change of margins of some images between batch sizes.

        If ``seconds`` pass before all sizes are measured, a CPU encodes in parts of measured sizes, and a GPU keeps the
        default. Does nothing for a format that is not batch-invariant, or for a VAE.
        """
        self._functions.calibrate(self._as_pixels(images), sizes, seconds=seconds)

    def latents(self, images: Images, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Images uint8 [B, S, S, 3] -> float32 [B, K, C] before quantization; for a VAE the posterior's mean, or with B
        ``seeds`` in 0..2**63-1 a sample for each image.

        Between batch sizes they differ by the rounding of float32; the noise of a seed is always the same. Raises
        ``ValueError`` for another shape or dtype, and for seeds of a variant that is no VAE.
        """
        encoded = self.submit_latents(images)()
        return torch.from_numpy(self.latent_format.latents_of(encoded.numpy(), seeds))

    @torch.inference_mode()
    def submit_latents(self, images: Images) -> Pending:
        """Starts to encode images uint8 [B, S, S, 3] to latents float32 [B, K, C], or for a VAE to the moments of the
        posterior, mean and log-variance [B, K, 2C]. The returned function waits for them; see :meth:`submit_encode`.
        """
        pixels = self._as_pixels(images)
        if len(pixels) == 0:
            return lambda: torch.empty(0, *self.latent_format.encoded_shape)
        pending = self._functions.submit(pixels, self._functions.latent_encoder)
        return lambda: pending()[0]

    @torch.inference_mode()
    def distances(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3] -> float32 [B, K, V]: squared distances to all codes; ids are their argmin.

        On the unit sphere (0 to 4) if the variant normalises its codes. Raises ``TypeError`` for a VAE variant.
        """
        self._require_codes()
        return self._functions.distances(self._as_pixels(images)).cpu()

    def decode(self, tokens: Tensor | Ids | Latents) -> Tensor:
        """Ids int [B, K] in 0..V-1, or a VAE variant's latents float32 [B, K, C] -> images uint8 [B, S, S, 3].

        A prefix-decodable tokenizer decodes the first ids of an image, too: [B, L] for L from ``min_tokens`` to K, and
        codes of different lengths with ``PAD`` (-1) after the last id of each. Codes of a length run together (on a CUDA
        device all that are shorter than K, with a mask), so that those of other lengths change nothing for an image.
        Pixels are clamped to [0, 1] and rounded to 256 levels. Raises ``CodeError`` (a ``ValueError``) for a wrong
        number of ids or ids out of range, before they reach the device.
        """
        return self.submit_decode(tokens)()

    @torch.inference_mode()
    def submit_decode(self, tokens: Tensor | Ids | Latents, *, into: Tensor | None = None) -> Pending:
        """Starts to decode (see :meth:`decode`); the returned function waits for the images.

        They are written to the host tensor ``into`` if given. The next batch can be submitted meanwhile.
        """
        if self.is_discrete:
            given = tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens
            if given.ndim != 2:
                raise ValueError(f"expected ids [B, {self.num_tokens}], not {list(given.shape)}")
            ids = self.code_format.check_padded(given)
            host, groups = torch.from_numpy(ids), self._groups(ids)
        else:
            host, groups = _as_tensor(tokens).to(torch.float32), []
            if host.ndim != 3 or host.shape[1:] != (self.num_tokens, self.token_size):
                raise ValueError(f"expected latents [B, {self.num_tokens}, {self.token_size}], not {list(host.shape)}")
        if len(host) == 0:
            return lambda: torch.empty(0, *self._image_shape, dtype=torch.uint8)
        self._count(len(host))
        submit = self._functions.submit
        if not groups:
            pending = submit(host, self.decoder, 0, into=into)
            return lambda: pending()[0]
        running = [
            (rows, submit(host[rows, :length], self.decoder, has_padding)) for rows, length, has_padding in groups
        ]

        def wait() -> Tensor:
            images = torch.empty(len(host), *self._image_shape, dtype=torch.uint8) if into is None else into
            for rows, pending in running:
                images[rows] = pending()[0]
            return images

        return wait

    def _groups(self, ids: Ids) -> list[tuple[Tensor, int, int]]:
        """Which rows of ids [B, K] with ``PAD`` are decoded together: their indices, the ids of each row, and 1 if some of
        these are ``PAD``. Empty if all rows have K ids.

        A CPU decodes one length at a time, without computing padding. On a CUDA device shorter codes share one pass.
        """
        lengths = torch.from_numpy(lengths_of(ids))
        if (lengths == self.num_tokens).all():
            return []
        if self.device.type == "cpu":
            return [((lengths == length).nonzero()[:, 0], length, 0) for length in sorted(set(lengths.tolist()))]
        is_short = lengths < self.num_tokens
        both = (((~is_short).nonzero()[:, 0], self.num_tokens, 0), (is_short.nonzero()[:, 0], self.num_tokens, 1))
        return [group for group in both if len(group[0])]

    def _require_codes(self) -> None:
        if not self.is_discrete:
            raise TypeError(f"{self.name} is a VAE: its tokens are vectors, not ids; use latents() and decode()")

    def _as_pixels(self, images: Images) -> Tensor:
        """Checks images uint8 [B, S, S, 3]; they stay on their device."""
        tensor = _as_tensor(images)
        if tensor.dtype is not torch.uint8 or tensor.ndim != 4 or tensor.shape[1:] != self._image_shape:
            expected = ", ".join(map(str, ("B", *self._image_shape)))
            raise ValueError(f"expected images uint8 [{expected}], not {tensor.dtype} {list(tensor.shape)}")
        return tensor


def _as_tensor(values: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch warns about read-only arrays
    return torch.as_tensor(values)


def load_tokenizer(
    name: str,
    *,
    weights: str | Path | HubFile | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    runtime: str | None = None,
    cache_dir: Path | None = None,
) -> Tokenizer:
    """Loads a tokenizer by variant name.

    ``weights`` is a ``.safetensors`` or ``.bin`` file, a folder with ``config.json``, or a hub id
    (``org/repo@revision``); by default the variant's own. Other names are allowed if ``weights`` has a ``config.json``.
    ``dtype`` is one of ``models.runtime.precision.DTYPES``; ``runtime`` and ``cache_dir`` are those of
    ``models.runtime.selection.Runtime``.

    Raises ``UnknownVariantError``, ``CheckpointError``, or ``ConfigError``.
    """
    if weights is None:
        if name not in TOKENIZERS:
            raise UnknownVariantError(f"no tokenizer is called {name!r}; choose one of {', '.join(TOKENIZERS)}")
        weights = TOKENIZERS[name].weights
    selected = Runtime.of(runtime, cache_dir)
    return build_tokenizer(name, open_checkpoint(weights), device=device, dtype=dtype, runtime=selected)


def build_tokenizer(
    name: str, checkpoint: Checkpoint, *, device: str = "cpu", dtype: str = "float32", runtime: Runtime = TORCH
) -> Tokenizer:
    """Builds a tokenizer from a checkpoint in memory. See :func:`load_tokenizer`."""
    return Tokenizer(
        load_tokenizer_network(name, checkpoint),
        name=name,
        digest=checkpoint.digest(),
        source=checkpoint.source,
        device=torch.device(device),
        dtype=dtype,
        runtime=runtime,
    )
