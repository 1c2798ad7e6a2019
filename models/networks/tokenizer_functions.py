"""The functions of a tokenizer's network on a device: what computes them, in which parts, and how often.

::

    images ─> parts of the batch ─> PyTorch, a CUDA graph, or OpenVINO ─> ids and margins ─┬─> ids
                                              PyTorch, float32, unbatched <── too close ───┘
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from models.codes.code_format import PAD
from models.networks.end_to_end import (
    ImageToIds,
    ImageToLatents,
    TokensToImage,
    decoder_in_float32,
    nearest_codes,
    to_float,
)
from models.networks.maskgit_vqgan import MaskGITVQGAN
from models.networks.titok import TiTok
from models.runtime.calibration import probe_images
from models.runtime.cpu_threads import BatchSplitter
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.matmul_precision import MatmulPrecision
from models.runtime.precision import FORMATS, Precision
from models.runtime.rounding_tolerance import MeasuredTolerance, measure_tolerance
from models.runtime.selection import TORCH, GraphSource, Runtime, SelectedFunction
from models.runtime.transfers import PendingResults, transfers_for

Pending: TypeAlias = Callable[[], Tensor]
"""Waits for a result and returns it."""

# Between batch sizes, rounding changes squared distances by at most 1e-5 of the latents' scale (float32, measured on the
# published shapes). The default is ten times that; the minimum applies where calibration finds no change. OpenVINO's
# results differ more until they are measured.
_DEFAULT_TOLERANCE, _MIN_TOLERANCE, _OPENVINO_TOLERANCE = 1e-4, 1e-5, 1e-3
_LONGEST_SECONDS = 60.0
# Pixels of other images than the probes differ by a level or two in bfloat16.
_LARGEST_DIFFERENCE = {torch.float32: 1, torch.bfloat16: 8}


class TokenizerFunctions:
    """Encoder and decoder of ``network``, whose weights have the ``digest``.

    ``image_shape`` [S, S, 3] and ``token_shape`` [K], or [K, C] for a VAE, are those of a row. Attributes: ``encoder``,
    ``latent_encoder`` and ``decoder``, the functions that run on the device; ``tolerance``, the margin of squared
    distances, relative to the latents' scale, below which an image is encoded again unbatched, by PyTorch in float32.
    """

    def __init__(
        self,
        network: TiTok | MaskGITVQGAN,
        *,
        digest: str,
        device: torch.device,
        precision: Precision,
        runtime: Runtime,
        image_shape: tuple[int, ...],
        token_shape: tuple[int, ...],
        is_prefix_decodable: bool,
    ) -> None:
        self._network, self._digest, self._device, self._precision = network, digest, device, precision
        self._image_shape, self._token_shape = image_shape, token_shape
        self._is_prefix_decodable = is_prefix_decodable
        self._is_discrete = len(token_shape) == 1
        self._to_latents, self._to_image = ImageToLatents(network), TokensToImage(network)
        self._encoding, self._decoding = precision.encoder.on(device), precision.decoder.on(device)
        self._float32 = FORMATS["float32"].on(device)
        self._transfers, self._splitter = transfers_for(device), BatchSplitter(device)
        self.tolerance = _DEFAULT_TOLERANCE
        self.is_calibrated = False
        self._max_part: int | None = None  # images that a core encodes together; None: no limit
        self._is_batch_invariant = precision.encoder.is_batch_invariant
        # What computes a batch instead of PyTorch must agree with it in float32.
        is_selectable = self._is_discrete and precision.encoder.is_exact and runtime.supports(device.type)
        self._runtime = runtime if is_selectable else TORCH
        self._selected_encode = SelectedFunction("encoder", partial(self._encode_by_torch, self._encoding))
        self._selected_decode = SelectedFunction("decoder", lambda ids: (self._to_image(ids),))
        # Images are encoded again by a variant of the function of its own, unless that is how all are encoded.
        self._exact_variant = 0 if self._runtime is TORCH and precision.encoder.is_exact else 1
        exact_variants = [(1,)] if self._is_batch_invariant and self._exact_variant else []
        self.latent_encoder = GraphedFunction(self._encode_latents, example=self._example_images)
        self.encoder = self.latent_encoder
        if self._is_discrete:
            self.encoder = GraphedFunction(
                self._encode,
                example=self._example_images,
                variants=lambda size: [(0,), *(exact_variants if size == 1 else [])],
            )
        self.decoder = GraphedFunction(
            self._decode,
            example=self._example_tokens,
            variants=lambda _: [(0,), (1,)] if is_prefix_decodable else [(0,)],
        )

    def _example_images(self, size: int) -> Tensor:
        return torch.zeros(size, *self._image_shape, dtype=torch.uint8, device=self._device)

    def _example_tokens(self, size: int) -> Tensor:
        dtype = torch.int64 if self._is_discrete else torch.float32
        return torch.zeros(size, *self._token_shape, dtype=dtype, device=self._device)

    def with_unselected_encoder(self) -> "TokenizerFunctions":
        """Functions of the same network with the same decoder, and an encoder whose runtime is not selected yet. While it is
        being selected in another thread, these here can be used.
        """
        functions = TokenizerFunctions(
            self._network,
            digest=self._digest,
            device=self._device,
            precision=self._precision,
            runtime=self._runtime,
            image_shape=self._image_shape,
            token_shape=self._token_shape,
            is_prefix_decodable=self._is_prefix_decodable,
        )
        functions._selected_decode = self._selected_decode
        return functions

    @property
    def runtimes(self) -> dict[str, str]:
        """What computes the encoder and the decoder: ``torch`` or ``openvino``."""
        return {"encoder": self._selected_encode.runtime, "decoder": self._selected_decode.runtime}

    @property
    def is_selectable(self) -> bool:
        """Whether something else than PyTorch may compute them."""
        return self._runtime is not TORCH

    def submit(
        self, host: Tensor, function: GraphedFunction, *static: int, into: Tensor | None = None
    ) -> PendingResults:
        """Starts to compute ``function(host, *static)``, on a CPU in parts."""
        max_part = self._max_part if function is self.encoder else None

        def compute(batch: Tensor) -> tuple[Tensor, ...]:
            if function.sizes:  # recorded graphs have static memory and replay one batch at a time
                return function(batch, *static)
            return self._splitter.run(lambda part: function(part, *static), batch, max_part)

        return self._transfers.run(host, compute, into)

    def submit_encode(self, images: Tensor) -> Pending:
        """Starts to encode images uint8 [B, S, S, 3]; the returned function waits for the ids int64 [B, K]."""
        pending = self.submit(images, self.encoder, 0)

        @torch.inference_mode()
        def wait() -> Tensor:
            ids, margins = pending()
            if self._is_batch_invariant and len(images) > 1 - self._exact_variant:
                close = (margins < self.tolerance).any(dim=1).nonzero()[:, 0].tolist()
                repeated = [self.submit(images[row : row + 1], self.encoder, self._exact_variant) for row in close]
                for row, result in zip(close, repeated, strict=True):
                    ids[row] = result()[0][0]
            return ids

        return wait

    def distances(self, images: Tensor) -> Tensor:
        """Images uint8 [B, S, S, 3] -> squared distances float32 [B, K, V] to all codes, on the device."""
        latents = self.latents(images.to(self._device))
        with self._float32:
            distances: Tensor = self._network.quantize.distances(latents.flatten(0, 1))
        return distances.view(*latents.shape[:2], -1)

    def latents(self, images: Tensor, precision: MatmulPrecision | None = None) -> Tensor:
        """Images uint8 [B, S, S, 3] on the device -> latents float32 [B, K, C], by PyTorch."""
        with precision or self._encoding:
            latents: Tensor = self._to_latents(images)
            return latents

    def _encode(self, images: Tensor, exact: int) -> tuple[Tensor, ...]:
        """Images uint8 [B, S, S, 3] on the device -> ids int64 [B, K] and margins float32 [B, K] (``nearest_codes``); by
        PyTorch in float32 if ``exact`` is 1.
        """
        return self._encode_by_torch(self._float32, images) if exact else self._selected_encode(images)

    def _encode_by_torch(self, precision: MatmulPrecision, images: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.latents(images, precision)
        with self._float32:
            return nearest_codes(self._network, latents)

    def _encode_latents(self, images: Tensor) -> tuple[Tensor]:
        """Images uint8 [B, S, S, 3] on the device -> latents float32 [B, K, C], or moments [B, K, 2C] of a VAE."""
        if self._is_discrete or not isinstance(self._network, TiTok):
            return (self.latents(images),)
        with self._encoding:
            return (torch.cat(self._network.posterior(to_float(images)), dim=2),)

    def _decode(self, tokens: Tensor, has_padding: int) -> tuple[Tensor, ...]:
        """Ids int64 [B, L], or a VAE's latents float32 [B, K, C], on the device -> images uint8 [B, S, S, 3].

        ``has_padding`` is 1 if ids may be ``PAD``.
        """
        with self._decoding:
            if has_padding:
                return (self._to_image(tokens.clamp(min=0), tokens != PAD),)
            if tokens.shape[1:] == self._token_shape:
                return self._selected_decode(tokens)
            return (self._to_image(tokens),)

    @torch.inference_mode()
    def select_encoder(self, threads: int) -> None:
        """Selects what computes batches of images on a CPU, at the first call (``models.runtime.selection``)."""
        if not self.is_selectable or self._selected_encode.is_selected:
            return
        images = probe_images(self._image_shape[0], 2 * threads)
        self._selected_encode.select(
            GraphSource(ImageToIds(self._network), self._example_images(2), self._digest),
            self._runtime,
            threads=threads,
            run=lambda: self.submit(images, self.encoder, 0)(),
            is_same=lambda found, expected: bool(
                ((found[0] == expected[0]) | (expected[1] < _OPENVINO_TOLERANCE)).all()
            ),
        )
        if self._selected_encode.runtime != "torch":
            self.tolerance = _OPENVINO_TOLERANCE

    @torch.inference_mode()
    def select_decoder(self, threads: int) -> None:
        """As :meth:`select_encoder`, for batches of ids."""
        if not self.is_selectable or self._selected_decode.is_selected:
            return
        ids = self.submit(probe_images(self._image_shape[0], 2 * threads), self.encoder, 1)()[0]
        decoder = self._precision.decoder
        in_float32 = self._network if decoder.is_exact else decoder_in_float32(self._network)
        to_image = TokensToImage(in_float32)

        def is_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
            if int(_pixel_difference(found[0], expected[0]).max()) <= _LARGEST_DIFFERENCE[decoder.dtype]:
                return True
            # How far bfloat16 moves pixels depends on the network.
            return not decoder.is_exact and is_as_close(found[0], expected[0], to_image(ids))

        self._selected_decode.select(
            GraphSource(to_image, self._example_tokens(2), self._digest, is_bfloat16=not decoder.is_exact),
            self._runtime,
            threads=threads,
            run=lambda: self.submit(ids, self.decoder, 0)(),
            is_same=is_same,
        )

    @torch.inference_mode()
    def calibrate(self, images: Tensor, sizes: Iterable[int], *, seconds: float) -> None:
        """Measures ``tolerance``; see ``Tokenizer.calibrate``."""
        self.is_calibrated = True
        if not self._is_batch_invariant or not self._is_discrete:
            return
        self._max_part = None

        def measure(sizes: Iterable[int], seconds: float) -> MeasuredTolerance | None:
            return measure_tolerance(
                lambda items: self.submit(images[items], self.encoder, 0)()[1],
                unbatched=lambda item: self.submit(images[item : item + 1], self.encoder, self._exact_variant)()[1],
                count=len(images),
                sizes=sizes,
                minimum=_MIN_TOLERANCE,
                seconds=seconds,
            )

        sizes = [1] * self._exact_variant + list(sizes)
        measured = measure(sizes, seconds)
        if measured is None and self._selected_encode.runtime != "torch":
            # With an unmeasured tolerance PyTorch would repeat most images. On a busy machine this takes longer.
            measured = measure([1], _LONGEST_SECONDS)
        if measured is None:
            return
        if self._device.type == "cpu":
            self._max_part = -(-measured.size // torch.get_num_threads())
        elif measured.size < max(sizes):
            return
        self.tolerance = measured.tolerance


def _pixel_difference(one: Tensor, other: Tensor) -> Tensor:
    """Levels between uint8 images of the same shape, int16."""
    return (one.short() - other).abs()


def is_as_close(found: Tensor, expected: Tensor, exact: Tensor) -> bool:
    """Whether images ``found`` are at most twice as far from the ``exact`` ones as ``expected`` are, uint8; in mean levels,
    with half a level for rounding.
    """
    mean, allowed = (float(_pixel_difference(image, exact).float().mean()) for image in (found, expected))
    return mean <= 2.0 * allowed + 0.5
