"""A tokenizer ready for work: uint8 images in, ids out, and back.

::

    from models import load_tokenizer
    tokenizer = load_tokenizer("titok-mini-32")
    ids = tokenizer.encode(images)      # uint8 [B, S, S, 3] -> int64 [B, K]
    images = tokenizer.decode(ids)      # int64 [B, K] -> uint8 [B, S, S, 3]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.checkpoints.configuration import tokenizer_config
from models.checkpoints.loading import Checkpoint, HubFile, load_strictly, open_checkpoint
from models.checkpoints.registry import TOKENIZERS
from models.codes.code_format import CodeFormat
from models.errors import CheckpointError, UnknownVariantError
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.skip_init import skip_init
from models.networks.titok import Posterior, TiTok, TiTokConfig
from models.preprocess import PREPROCESSING_VERSION
from models.runtime.cpu_threads import BatchSplitter
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.matmul_precision import MatmulPrecision
from models.runtime.precision import FORMATS, Precision
from models.runtime.rounding_tolerance import measure_tolerance
from models.runtime.transfers import PendingResults, transfers_for

__all__ = ["Pending", "Tokenizer", "build_tokenizer", "load_tokenizer"]

Images = Tensor | npt.NDArray[np.uint8]
Pending = Callable[[], Tensor]
"""Waits for a result that is being computed."""

# Rounding moves squared distances between batch sizes by 1e-5 of the latents' scale at most (float32, measured on the
# published shapes): ten times that, until it is measured here; and what is believed where nothing is seen to move.
_TOLERANCE, _LEAST_TOLERANCE = 1e-4, 1e-5


class Tokenizer:
    """A network with its weights on a device.

    Attributes: ``name``; ``digest`` of the weights; ``revision``, which changes whenever ids may; ``image_size`` S;
    ``num_tokens`` K; ``codebook_size`` V (0 for the VAE variants, whose tokens are vectors); ``token_size`` C;
    ``patch_size``, the side of the decoder's patches in pixels; ``source`` of the weights; ``encoder`` and
    ``decoder``, what is run on the device (``models.runtime.cuda_graphs``); ``tolerance``, the margin (of squared
    distances, over the latents' scale) below which an image is re-encoded unbatched (``models.runtime.rounding_tolerance``).
    """

    def __init__(
        self, network: TiTok | MaskGITVQGAN, *, name: str, digest: str, source: str, device: torch.device, dtype: str
    ) -> None:
        self.name = name
        self.digest = digest
        self.source = source
        self.device = device
        self.precision = Precision.of(dtype, device)
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.set_compute_dtype(encoder=self.precision.encoder.dtype, decoder=self.precision.decoder.dtype)
        self._encoding, self._decoding = self.precision.encoder.on(device), self.precision.decoder.on(device)
        self._exact = FORMATS["float32"].on(device)
        self._transfers, self._cores = transfers_for(device), BatchSplitter(device)
        if isinstance(network, TiTok):
            self.is_discrete = network.config.quantize_mode == "vq"
            self.num_tokens, self.token_size = network.config.num_latent_tokens, network.config.token_size
            self.patch_size = network.config.decoder_patch_size
            self._unit_latents = network.config.use_l2_norm
        else:
            self.is_discrete = True
            self.num_tokens, self.token_size = network.config.grid_size**2, network.config.latent_channels
            self.patch_size = network.config.downsampling
            self._unit_latents = False
        self.codebook_size = network.config.codebook_size if self.is_discrete else 0
        self.image_size = network.config.image_size
        self.revision = f"{digest[:12]}-p{PREPROCESSING_VERSION}{self.precision.encoder.suffix}"
        shape = (self.image_size, self.image_size, 3)
        self.tolerance = _TOLERANCE
        self._company: int | None = None  # how many images a core encodes together; None: as many as come
        # An image alone is encoded in float32 whatever the others are: as a variant of the function, unless it is so anyway.
        self._alone = 0 if self.precision.encoder.is_exact else 1
        self.encoder = GraphedFunction(
            self._encode,
            example=lambda size: torch.zeros(size, *shape, dtype=torch.uint8, device=device),
            variants=lambda size: [(0,), (1,)] if self._decides_alone and size == 1 and self._alone else [(0,)],
        )
        self.decoder = GraphedFunction(
            self._decode, example=lambda size: torch.zeros(size, self.num_tokens, dtype=torch.int64, device=device)
        )

    @property
    def code_format(self) -> CodeFormat:
        """How this tokenizer's ids are packed. Raises ``TypeError`` for a VAE variant."""
        self._need_codes()
        return CodeFormat(self.num_tokens, self.codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The codes that ids stand for, as the decoder looks them up: float32 [V, C]. Raises ``TypeError`` for a VAE."""
        self._need_codes()
        codes: Tensor = self._network.quantize.codebook
        return codes.detach().cpu().clone()

    @property
    def num_parameters(self) -> int:
        """Weights in the network."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def encode(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3] -> ids int64 [B, K].

        In float32 an image's ids do not depend on the other images: where two codes are so close that the rounding of
        a larger batch could decide, the image is encoded again on its own. In ``tf32x3`` the same is done in float32, so
        that its ids are float32's.

        Raises ``ValueError`` for another shape or dtype, ``TypeError`` for a VAE variant.
        """
        return self.submit_encode(images)()

    @torch.inference_mode()
    def submit_encode(self, images: Images) -> Pending:
        """Begins to encode (see :meth:`encode`): calling what it gives waits for the ids.

        On a CUDA device the next batch can be submitted meanwhile, and its copy takes no time of its own if the images are
        in pinned memory. They must stay as they are until the ids are there.
        """
        self._need_codes()
        pixels = self._checked(images)
        if len(pixels) == 0:
            return lambda: torch.empty(0, self.num_tokens, dtype=torch.int64)
        arriving = self._assign(pixels)

        @torch.inference_mode()
        def wait() -> Tensor:
            ids, margins = arriving()
            if self._decides_alone and len(pixels) > 1 - self._alone:
                close = (margins < self.tolerance).any(dim=1).nonzero()[:, 0].tolist()
                alone = [self._assign(pixels[row : row + 1], self._alone) for row in close]
                for row, arriving_alone in zip(close, alone, strict=True):
                    ids[row] = arriving_alone()[0][0]
            return ids

        return wait

    @property
    def _decides_alone(self) -> bool:
        return self.precision.encoder.rounds_like_float32

    def _assign(self, pixels: Tensor, exactly: int = 0) -> PendingResults:
        return self._submit(pixels, self.encoder, exactly)

    def _submit(
        self, host: Tensor, function: GraphedFunction, *static: int, into: Tensor | None = None
    ) -> PendingResults:
        def compute(batch: Tensor) -> tuple[Tensor, ...]:
            return function(batch, *static)

        # What is recorded replays in memory of its own, one batch at a time.
        most = self._company if function is self.encoder else None
        return self._transfers.run(host, compute if function.sizes else self._cores.divided(compute, most), into)

    def _encode(self, images: Tensor, exactly: int) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, S, S, 3] on the device -> ids int64 [B, K], and margins float32 [B, K] over the latents' scale;
        in float32 if ``exactly`` is 1.
        """
        latents = self._latents(images, self._exact if exactly else self._encoding)
        with self._exact:
            assignment = self._network.quantize.assign(latents)
        scale = 1.0 if self._unit_latents else latents.square().sum(dim=2).clamp(min=1.0)
        return assignment.ids, assignment.margin / scale

    def _latents(self, images: Tensor, products: MatmulPrecision) -> Tensor:
        """Images uint8 [B, S, S, 3] on the device -> latents float32 [B, K, C]."""
        with products:
            return self._network.latents(_normalised(images))

    @torch.inference_mode()
    def calibrate(self, images: Images, sizes: Iterable[int], *, seconds: float) -> None:
        """Sets the ``tolerance`` by how far the margins of some images move between batch sizes, on this device.

        If that takes longer, a CPU computes larger batches than were measured in parts that were; a GPU stays as cautious as
        it is. Does nothing in a format in which images are not decided alone.
        """
        pixels, sizes = self._checked(images), list(sizes)
        if not self._decides_alone:
            return
        self._company = None
        measured = measure_tolerance(
            lambda items: self._assign(pixels[items])()[1],
            alone=lambda item: self._assign(pixels[item : item + 1], self._alone)()[1],
            count=len(pixels),
            sizes=sizes,
            least=_LEAST_TOLERANCE,
            seconds=seconds,
        )
        if measured is None:
            return
        if self.device.type == "cpu":
            self._company = -(-measured.size // torch.get_num_threads())
        elif measured.size < max(sizes):
            return
        self.tolerance = measured.tolerance

    @torch.inference_mode()
    def latents(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3] -> float32 [B, K, C] before quantization; of a VAE the posterior's mean."""
        return self._latents(self._checked(images).to(self.device), self._encoding).cpu()

    @torch.inference_mode()
    def distances(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3] -> float32 [B, K, V]: squared distances to every code, of which the ids are the least.

        On the unit sphere, 0 to 4, where the variant normalises its codes. Raises ``TypeError`` for a VAE variant.
        """
        self._need_codes()
        latents = self._latents(self._checked(images).to(self.device), self._encoding)
        with self._exact:
            distances: Tensor = self._network.quantize.distances(latents.flatten(0, 1))
        return distances.view(*latents.shape[:2], -1).cpu()

    @torch.inference_mode()
    def posterior(self, images: Images) -> Posterior:
        """Images uint8 [B, S, S, 3] -> mean and log variance float32 [B, K, C] of a VAE variant."""
        if self.is_discrete or not isinstance(self._network, TiTok):
            raise TypeError(f"{self.name} is no VAE: its tokens are codes, not vectors")
        with self._encoding:
            posterior = self._network.posterior(_normalised(self._checked(images).to(self.device)))
        return Posterior(posterior.mean.cpu(), posterior.logvar.cpu())

    def decode(self, tokens: Tensor | npt.NDArray[np.int64]) -> Tensor:
        """Ids int [B, K] in 0..V-1 -> images uint8 [B, S, S, 3]; a VAE variant takes its latents float32 [B, K, C].

        Pixels are clamped to [0, 1] and rounded to the nearest of 256 levels. Raises ``CodeError`` (a ``ValueError``)
        for ids of another count or out of range: they never reach the device.
        """
        return self.submit_decode(tokens)()

    @torch.inference_mode()
    def submit_decode(self, tokens: Tensor | npt.NDArray[np.int64], *, into: Tensor | None = None) -> Pending:
        """Begins to decode (see :meth:`decode`): calling what it gives waits for the images, and gives ``into`` if one is
        given, a tensor of the host for them. The next batch can be submitted meanwhile.
        """
        if self.is_discrete:
            ids = self.code_format.check(tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens)
            if ids.ndim != 2:
                raise ValueError(f"expected ids [B, {self.num_tokens}], not {list(ids.shape)}")
            host = torch.from_numpy(ids)
        else:
            host = torch.as_tensor(tokens).to(torch.float32)
            if host.ndim != 3 or host.shape[1:] != (self.num_tokens, self.token_size):
                raise ValueError(f"expected latents [B, {self.num_tokens}, {self.token_size}], not {list(host.shape)}")
        if len(host) == 0:
            return lambda: torch.empty(0, self.image_size, self.image_size, 3, dtype=torch.uint8)
        if self.is_discrete:
            arriving = self._submit(host, self.decoder, into=into)
        else:
            arriving = self._transfers.run(host, self._decode_latents, into)
        return lambda: arriving()[0]

    def _decode(self, ids: Tensor) -> tuple[Tensor]:
        """Ids int64 [B, K] on the device -> images uint8 [B, S, S, 3]."""
        with self._decoding:
            return (_rounded(self._network.decode(ids)),)

    def _decode_latents(self, latents: Tensor) -> tuple[Tensor]:
        """Latents float32 [B, K, C] of a VAE on the device -> images uint8 [B, S, S, 3]."""
        assert isinstance(self._network, TiTok)  # noqa: S101  the other kind is discrete
        with self._decoding:
            return (_rounded(self._network.decode_codes(latents)),)

    def _need_codes(self) -> None:
        if not self.is_discrete:
            raise TypeError(f"{self.name} is a VAE: its tokens are vectors, not ids; use latents() and decode()")

    def _checked(self, images: Images) -> Tensor:
        """Images uint8 [B, S, S, 3], wherever they are."""
        if isinstance(images, np.ndarray) and not images.flags.writeable:
            images = images.copy()  # torch warns of arrays that it could not write to
        tensor = torch.as_tensor(images)
        shape = (self.image_size, self.image_size, 3)
        if tensor.dtype is not torch.uint8 or tensor.ndim != 4 or tensor.shape[1:] != shape:
            expected = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"expected images uint8 [{expected}], not {tensor.dtype} {list(tensor.shape)}")
        return tensor


def _normalised(images: Tensor) -> Tensor:
    """Uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div(255.0)


def _rounded(images: Tensor) -> Tensor:
    """Float [B, 3, S, S] -> uint8 [B, S, S, 3]."""
    pixels = images.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def load_tokenizer(
    name: str, *, weights: str | Path | HubFile | None = None, device: str = "cpu", dtype: str = "float32"
) -> Tokenizer:
    """Loads a tokenizer by its variant name.

    ``weights`` is a ``.safetensors`` or ``.bin`` file, a folder with ``config.json``, or a hub id
    (``org/repo@revision``); by default the variant's own. A name of no variant is allowed where ``weights`` has a
    ``config.json``. ``dtype`` is one of ``models.runtime.precision.DTYPES``.

    Raises ``UnknownVariantError``, ``CheckpointError``, or ``ConfigError``.
    """
    variant = TOKENIZERS.get(name)
    if weights is None:
        if variant is None:
            raise UnknownVariantError(f"no tokenizer is called {name!r}; there are {', '.join(TOKENIZERS)}")
        weights = variant.weights
    return build_tokenizer(name, open_checkpoint(weights), device=device, dtype=dtype)


def build_tokenizer(name: str, checkpoint: Checkpoint, *, device: str = "cpu", dtype: str = "float32") -> Tokenizer:
    """What :func:`load_tokenizer` gives, of weights that are read already."""
    variant = TOKENIZERS.get(name)
    with skip_init():
        network = _network(name, variant.config if variant is not None else None, checkpoint)
    load_strictly(network, checkpoint)
    return Tokenizer(
        network,
        name=name,
        digest=checkpoint.digest(),
        source=checkpoint.source,
        device=torch.device(device),
        dtype=dtype,
    )


def _network(
    name: str, published: TiTokConfig | MaskGITVQGANConfig | None, checkpoint: Checkpoint
) -> TiTok | MaskGITVQGAN:
    if isinstance(published, MaskGITVQGANConfig):
        return MaskGITVQGAN(published)
    if checkpoint.config is not None:
        return TiTok(tokenizer_config(checkpoint.config))
    if published is not None:
        return TiTok(published)
    raise CheckpointError(f"{checkpoint.source} has no config.json beside it, and {name!r} is no published variant")
