"""The models on one device: runs batches of arrays, in the thread that owns the device."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import Generator, Tokenizer
from models.arrays import Ids, Latents, Pixels
from models.errors import CheckpointError
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from models.runtime.calibration import calibrate
from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction, Recorder
from models.runtime.device_memory import is_out_of_memory, memory_bytes, release_memory
from models.runtime.device_names import select_device
from models.runtime.transfers import pin
from models.sampling.settings import SamplingSettings
from service.engine.protocol import ConfigurationError, Device, LaneName, RowState, Stepped
from service.inference.adaptive_limit import AdaptiveLimit
from service.inference.batch_limits import LARGEST_BATCH, batch_sizes, find_batch_limit
from service.inference.gpu_sensors import open_sensors
from service.inference.loading import load_models
from service.inference.memory_fit import largest_that_fits, record_graphs
from service.inference.model_info import GeneratorInfo, ModelInfo
from service.inference.stopwatch import cpu_seconds, wall_seconds
from service.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PARTS_IN_FLIGHT = 2
# On a CPU the cores share a batch image by image, so no size is slower than a smaller one, and the time of one image gives
# the limit. Measuring every size on a machine that is busy at start-up would wrongly show no gain from 4 images on.
_CPU_TRIAL_SECONDS, _CUDA_TRIAL_SECONDS = 0.0, 1.5


class ServedDevice(Device, Protocol):
    """A device that describes its models."""

    @property
    def info(self) -> ModelInfo:
        """Its models."""


class ModelDevice:
    """A tokenizer and, optionally, its generator.

    ``batch_limits`` are the images by lane that run at once; a larger batch runs in parts. ``warm_up`` finds them: at most
    ``max_batch_size`` (0: no bound), and such that a batch takes at most ``batch_seconds``. When images do not fit into
    memory, they are repeated in smaller parts (``service.inference.adaptive_limit``).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator | None,
        *,
        max_batch_size: int = 0,
        batch_seconds: float = 0.5,
        preprocessing: PreprocessingOptions = PUBLISHED,
        recorder: Recorder | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._generator = generator
        self._largest = max_batch_size or LARGEST_BATCH
        self._batch_seconds = batch_seconds
        self._recorder = recorder
        self._out_of_memory = 0
        self._rows: Counter[LaneName] = Counter()
        self._padding: Counter[LaneName] = Counter()
        self._sensors = open_sensors(tokenizer.device)
        self._limits = {lane: AdaptiveLimit(self._largest) for lane in self._functions}
        self._found_limits = self.batch_limits
        self._is_selecting = False
        self._info = _model_info(tokenizer, generator, preprocessing)

    @property
    def _functions(self) -> dict[LaneName, GraphedFunction]:
        """What runs on the device, by lane. The encoder is another one after its runtime was selected."""
        functions: dict[LaneName, GraphedFunction] = {
            "encode": self._tokenizer.encoder,
            "decode": self._tokenizer.decoder,
        }
        return functions if self._generator is None else functions | {"generate": self._generator.stepper}

    @property
    def info(self) -> ModelInfo:
        """The models, and the largest batches that fitted at start-up."""
        return replace(self._info, batch_limits={lane: limit.measured for lane, limit in self._limits.items()})

    @property
    def batch_limits(self) -> dict[LaneName, int]:
        """The limits as they are now."""
        return {lane: limit.current for lane, limit in self._limits.items()}

    def status(self) -> dict[str, object]:
        """Current state; may be called from any thread.

        ``batch_limits``; ``measured_limits`` for a later start; ``out_of_memory``, how many batches did not fit; by lane,
        ``graphs``, the recorded batch sizes, and ``padding``, the fraction of all rows that only filled a batch up to a
        recorded size; ``runtimes``, what computes the encoder (``selecting``: PyTorch, until the selection ends) and the
        decoder; ``memory``, on a CUDA device its bytes by kind (``models.runtime.device_memory``), else None;
        ``sensors``, the readings of a GPU's driver (``service.inference.gpu_sensors``), else None.
        """
        return {
            "batch_limits": self.batch_limits,
            "measured_limits": self._found_limits,
            "out_of_memory": self._out_of_memory,
            "graphs": {lane: function.sizes for lane, function in self._functions.items()},
            "padding": {
                lane: self._padding[lane] / rows if (rows := self._rows[lane]) else 0.0 for lane in self._functions
            },
            "runtimes": self._tokenizer.runtimes | ({"encoder": "selecting"} if self._is_selecting else {}),
            "memory": memory_bytes(self._tokenizer.device),
            "sensors": None if self._sensors is None else self._sensors.read(),
        }

    def pin(self, array: NDArray[Any]) -> None:
        """Page-locks memory that holds batches or results, for its lifetime; if that fails, copies are slower. May be called
        from any thread. Does nothing on a CPU.
        """
        try:
            pin(array, self._tokenizer.device)
        except RuntimeError as error:
            log.warning("copying batches from memory that is not pinned, which is slower: %s", error)

    def encode(self, images: Pixels) -> Ids:
        """Encodes images uint8 [b, S, S, 3] to ids int64 [b, K]."""
        return _joined(self._in_parts("encode", len(images), lambda part: self._tokenizer.submit_encode(images[part])))

    def latents(self, images: Pixels) -> Latents:
        """Encodes images uint8 [b, S, S, 3] to latents float32 [b, K, C], of a VAE to mean and log-variance [b, K, 2C]."""
        return _joined(self._in_parts("encode", len(images), lambda part: self._tokenizer.submit_latents(images[part])))

    def decode(self, tokens: Ids | Latents, *, out: Pixels | None = None) -> Pixels:
        """Decodes ids int64 [b, K], or a VAE's latents float32 [b, K, C], to images uint8 [b, S, S, 3], into ``out`` if
        given.
        """

        def submit(part: slice) -> Callable[[], Tensor]:
            into = None if out is None else torch.from_numpy(out[part])
            return self._tokenizer.submit_decode(tokens[part], into=into)

        parts = self._in_parts("decode", len(tokens), submit)
        return _joined(parts) if out is None else out

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """Runs one sampling step of unfinished rows in one forward pass: a pure function of their states.

        Raises ``ValueError`` or ``TypeError`` if a row is not a state of this generator; then no row is changed.
        """
        generator = self._need_generator()
        states = [
            generator.row(
                row.label,
                row.seed,
                cast("SamplingSettings", row.settings),  # checked there
                step=row.step,
                tokens=None if row.tokens is None else torch.from_numpy(np.require(row.tokens, requirements="W")),
            )
            for row in rows
        ]
        parts = self._in_parts("generate", len(states), lambda part: partial(generator.advance, states[part]))
        tokens, sampled, finished = (_joined(arrays) for arrays in zip(*parts, strict=True))
        return Stepped(tokens=tokens, sampled=sampled, finished=finished)

    def _in_parts(self, lane: LaneName, count: int, submit: Callable[[slice], Callable[[], Result]]) -> list[Result]:
        """Runs parts of at most the lane's limit, and smaller ones after images did not fit into memory.

        A part is submitted while the one before runs, which hides its copy to the device. After a failure the others run
        one by one.
        """
        if count == 0:
            return [submit(slice(0, 0))()]
        results: list[Result] = []
        running: deque[tuple[int, Callable[[], Result]]] = deque()
        limit, parts_in_flight, done, begun = self._limits[lane], _PARTS_IN_FLIGHT, 0, 0
        while done < count:
            try:
                while begun < count and len(running) < parts_in_flight:
                    first, begun = begun, min(begun + limit.current, count)
                    running.append((begun - first, submit(slice(first, begun))))
                size, arrived = running.popleft()
                results.append(arrived())
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._out_of_memory += 1
                if begun - done == 1:
                    # Not RuntimeError: what cuBLAS says then reads like the end of the CUDA context.
                    raise MemoryError(f"one image does not fit into memory: {error}") from error
            else:
                done += size
                self._count_padding(lane, size)
                limit.grow(size)
                continue
            # After the except block: within it the traceback holds the tensors of the part that failed.
            running.clear()
            self._shrink(lane, begun - done)
            begun, parts_in_flight = done, 1
        return results

    def _count_padding(self, lane: LaneName, size: int) -> None:
        rows = self._functions[lane].padded(size)
        self._rows[lane] += rows
        self._padding[lane] += rows - size

    def _shrink(self, lane: LaneName, images: int) -> None:
        limit = self._limits[lane]
        limit.shrink(images)
        self._functions[lane].discard(above=limit.current)
        release_memory(self._tokenizer.device)
        log.warning("%d images of lane %s do not fit into memory; the limit is now %d", images, lane, limit.current)

    def _need_generator(self) -> Generator:
        if self._generator is None:
            raise TypeError("no generator is loaded")
        return self._generator

    def warm_up(
        self, known_limits: Mapping[str, int] | None = None, *, selects_encoder_in_background: bool = False
    ) -> None:
        """Measures the batch limits, or takes ``known_limits`` of an earlier worker, and records CUDA graphs up to them.
        One-time costs of a device are paid here, not by the first request. Called by the thread that will run batches.

        With ``selects_encoder_in_background`` PyTorch encodes at first, and a thread selects the encoder's runtime, which
        can take as long as all the rest. The ids are the same. The pixels of a code may differ by a level, so the decoder's
        runtime does not change once images were decoded.
        """
        threads, in_background = (
            torch.get_num_threads(),
            selects_encoder_in_background and self._tokenizer.is_selectable,
        )
        if in_background:
            self._tokenizer.select_decoder(threads)
        else:
            self._tokenizer.select_runtime(threads)
        if known_limits is not None and known_limits.keys() == self._limits.keys():
            for lane in self._limits:
                self._limits[lane] = AdaptiveLimit(min(known_limits[lane], self._largest))
                self._trial(lane)(1)
        else:
            self._find_limits()
        self._found_limits = self.batch_limits
        if self._recorder is not None:
            self._record(self._recorder)
        largest = self._limits["encode"].measured
        if in_background:
            self._is_selecting = True
            threading.Thread(
                target=self._select_encoder, args=(threads, largest), name="runtime selection", daemon=True
            ).start()
        else:
            fitting = largest_that_fits(
                partial(calibrate, self._tokenizer), largest, self._functions["encode"], self._tokenizer.device
            )
            self._limits["encode"] = AdaptiveLimit(fitting)
        log.info("batch limits: %s", self.batch_limits)

    def _select_encoder(self, threads: int, largest: int) -> None:
        try:
            self._tokenizer.select_encoder(threads, largest)
        except Exception:
            log.exception("PyTorch encodes, because the selection of a runtime failed")
        finally:
            self._is_selecting = False

    def _find_limits(self) -> None:
        on_cpu = self._tokenizer.device.type == "cpu"
        for lane in self._limits:
            limit = find_batch_limit(
                self._trial(lane),
                largest=self._largest,
                seconds=self._batch_seconds,
                trial_seconds=_CPU_TRIAL_SECONDS if on_cpu else _CUDA_TRIAL_SECONDS,
                is_out_of_memory=is_out_of_memory,
                measure=cpu_seconds if on_cpu else wall_seconds,
            )
            self._limits[lane] = AdaptiveLimit(limit)
            if not on_cpu:  # where one image is tried, and collecting garbage takes a tenth of a second
                release_memory(self._tokenizer.device)

    def _record(self, recorder: Recorder) -> None:
        for lane, function in self._functions.items():
            limit = self._limits[lane].measured
            self._limits[lane] = AdaptiveLimit(
                record_graphs(function, batch_sizes, limit, recorder, self._tokenizer.device)
            )

    def _trial(self, lane: LaneName) -> Callable[[int], object]:
        """A function that runs a batch of a given size, regardless of the limit."""
        noise, tokenizer = np.random.default_rng(0), self._tokenizer
        size, num_tokens, codes = tokenizer.image_size, tokenizer.num_tokens, tokenizer.codebook_size
        if lane == "encode":
            images = lru_cache(1)(lambda count: noise.integers(0, 256, (count, size, size, 3), np.uint8))
            encode = tokenizer.encode if tokenizer.is_discrete else tokenizer.latents
            return lambda count: encode(images(count))
        if lane == "decode":
            latents = lru_cache(1)(
                lambda count: noise.standard_normal((count, *tokenizer.latent_format.shape), np.float32)
            )
            ids = lru_cache(1)(lambda count: noise.integers(0, codes, (count, num_tokens), np.int64))
            return lambda count: tokenizer.decode(ids(count) if tokenizer.is_discrete else latents(count))
        generator = self._need_generator()
        settings = generator.settings(guidance_scale=2.0, guidance_decay="constant")
        rows = lru_cache(1)(lambda count: [generator.row(0, seed, settings) for seed in range(count)])
        return lambda count: generator.advance(rows(count))


def _model_info(tokenizer: Tokenizer, generator: Generator | None, preprocessing: PreprocessingOptions) -> ModelInfo:
    precision = tokenizer.precision
    return ModelInfo(
        name=tokenizer.name,
        revision=preprocessing.revision_of(tokenizer.revision),
        image_size=tokenizer.image_size,
        codes=tokenizer.code_format if tokenizer.is_discrete else None,
        latent_format=tokenizer.latent_format,
        device=str(tokenizer.device),
        precision={part: getattr(precision, part).name for part in ("encoder", "decoder", "generator")},
        source=tokenizer.source,
        generator=None
        if generator is None
        else GeneratorInfo(
            revision=generator.revision, class_names=generator.class_names, presets=dict(generator.presets)
        ),
        batch_limits={},
        codebook=tokenizer.codebook.numpy() if tokenizer.is_discrete else np.empty((0, 0), np.float32),
    )


def _joined(parts: Sequence[Tensor]) -> NDArray[Any]:
    """Concatenates tensors to one array; a single tensor is not copied."""
    arrays = [part.numpy() for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def open_device(
    settings: Settings,
    *,
    known_limits: Mapping[str, int] | None = None,
    selects_encoder_in_background: bool = False,
) -> ModelDevice:
    """Loads the models that the settings name and warms them up (``ModelDevice.warm_up``). Called in the thread that will
    own the device. ``known_limits``: the ``measured_limits`` of an earlier device with the same settings, which need not be
    measured again. With ``selects_encoder_in_background`` the process must end without the interpreter's shutdown, because
    the thread may run then.

    Raises ``ConfigurationError`` with a message for the operator if a setting or a file is wrong.
    """
    try:
        models = _load(settings)
    except (ValueError, LookupError, OSError, CheckpointError) as error:
        raise ConfigurationError(str(error)) from error
    models.warm_up(known_limits, selects_encoder_in_background=selects_encoder_in_background)
    return models


def _load(settings: Settings) -> ModelDevice:
    try:
        device = select_device(settings.devices)
    except ValueError as error:
        raise ValueError(f"TITOK_DEVICES: {error}") from None
    recorder = None
    if device.type == "cpu":
        torch.set_num_threads(settings.device_threads)
    elif settings.cuda_graphs:
        recorder = CudaRecorder(device)
    tokenizer, generator = load_models(settings, str(device))
    return ModelDevice(
        tokenizer,
        generator,
        max_batch_size=settings.max_batch_size,
        batch_seconds=settings.batch_seconds,
        preprocessing=settings.preprocessing,
        recorder=recorder,
    )
