"""The models on one device, as the engine calls them: arrays in, arrays out, from the one thread that owns them."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import Generator, Tokenizer, load_generator, load_tokenizer
from models.checkpoints.registry import GENERATORS
from models.errors import CheckpointError
from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction, Recorder
from models.runtime.device_memory import is_out_of_memory, memory_bytes, release_memory
from models.runtime.transfers import pin
from models.sampling.settings import SamplingSettings
from service.engine.protocol import Device, LaneName, RowState, Stepped
from service.inference.batch_limits import LARGEST_BATCH, batch_sizes, find_batch_limit
from service.inference.calibration import calibrate
from service.inference.gpu_sensors import open_sensors
from service.inference.model_info import GeneratorInfo, ModelInfo
from service.inference.stopwatch import cpu_seconds, wall_seconds

__all__ = ["ModelDevice", "ServedDevice", "open_device"]

if TYPE_CHECKING:
    from service.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PARTS_IN_FLIGHT = 2
# A CPU's cores share a batch image by image: no size is slower than a smaller one, and one image tells how many the budget
# has room for. Measured size by size, a machine that does other things at start-up would seem to gain nothing from 4 on.
_CPU_TRIAL_SECONDS, _CUDA_TRIAL_SECONDS = 0.0, 1.5


class ServedDevice(Device, Protocol):
    """A device that says what it serves."""

    @property
    def info(self) -> ModelInfo:
        """The models on it."""


class ModelDevice:
    """A tokenizer, and its generator if there is one.

    ``batch_limits`` says by lane how many images run at once; a larger batch runs in parts. They are found by
    ``warm_up``, at most ``max_batch_size`` (0: no bound) and such that a batch takes ``batch_seconds`` at most. Where a
    batch does not fit into memory, its lane's limit becomes half of it for good, and the batch is run again in halves.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator | None,
        *,
        max_batch_size: int = 0,
        batch_seconds: float = 0.5,
        recorder: Recorder | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._generator = generator
        self._largest = max_batch_size or LARGEST_BATCH
        self._batch_seconds = batch_seconds
        self._recorder = recorder
        self._functions: dict[LaneName, GraphedFunction] = {"encode": tokenizer.encoder, "decode": tokenizer.decoder}
        if generator is not None:
            self._functions["generate"] = generator.stepper
        self._out_of_memory = 0
        self._rows: Counter[LaneName] = Counter()
        self._padding: Counter[LaneName] = Counter()
        self._sensors = open_sensors(tokenizer.device)
        self.batch_limits: dict[LaneName, int] = dict.fromkeys(self._functions, self._largest)
        self._info = ModelInfo(
            name=tokenizer.name,
            revision=tokenizer.revision,
            image_size=tokenizer.image_size,
            code_format=tokenizer.code_format,
            device=str(tokenizer.device),
            precision={
                "encoder": tokenizer.precision.encoder.name,
                "decoder": tokenizer.precision.decoder.name,
                "generator": tokenizer.precision.generator.name,
            },
            source=tokenizer.source,
            generator=None
            if generator is None
            else GeneratorInfo(
                revision=generator.revision, class_names=generator.class_names, presets=dict(generator.presets)
            ),
            batch_limits={},
            codebook=tokenizer.codebook.numpy(),
        )

    @property
    def info(self) -> ModelInfo:
        """The models on it."""
        return replace(self._info, batch_limits=self._limits())

    def _limits(self) -> dict[str, int]:
        return {str(lane): limit for lane, limit in self.batch_limits.items()}

    def status(self) -> dict[str, object]:
        """``batch_limits`` as they are now; ``out_of_memory``, how many batches did not fit; ``graphs``, the batch sizes
        recorded in each lane; ``padding``, which part of the rows that ran in each were there only to fill up to one of
        those; ``memory``, on a CUDA device its bytes by kind (see ``models.runtime.device_memory``), else None; ``sensors``,
        what a GPU's driver tells of it (see ``service.inference.gpu_sensors``), else None. May be called from any thread.
        """
        return {
            "batch_limits": self._limits(),
            "out_of_memory": self._out_of_memory,
            "graphs": {str(lane): function.sizes for lane, function in self._functions.items()},
            "padding": {
                str(lane): self._padding[lane] / rows if (rows := self._rows[lane]) else 0.0 for lane in self._functions
            },
            "memory": memory_bytes(self._tokenizer.device),
            "sensors": None if self._sensors is None else self._sensors.read(),
        }

    def pin(self, array: npt.NDArray[Any]) -> None:
        """Page-locks memory that batches will be handed in or taken from, for as long as it lives; where that cannot be,
        copies are slower. May be called from any thread. Does nothing for a CPU.
        """
        try:
            pin(array, self._tokenizer.device)
        except RuntimeError as error:
            log.warning("batches are copied from memory that is not pinned, which is slower: %s", error)

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Images uint8 [b, S, S, 3] -> ids int64 [b, K]."""
        return _joined(self._in_parts("encode", len(images), lambda part: self._tokenizer.submit_encode(images[part])))

    def decode(
        self, tokens: npt.NDArray[np.int64], *, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Ids int64 [b, K] -> images uint8 [b, S, S, 3], in ``out`` if it is given."""

        def submit(part: slice) -> Callable[[], Tensor]:
            into = None if out is None else torch.from_numpy(out[part])
            return self._tokenizer.submit_decode(tokens[part], into=into)

        parts = self._in_parts("decode", len(tokens), submit)
        return _joined(parts) if out is None else out

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """One sampling step of unfinished rows, in one forward pass: a pure function of their states.

        Raises ``ValueError`` or ``TypeError`` where a row is no state of this generator, and then moves none.
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
        """Runs parts of at most the lane's limit; where one does not fit into memory, smaller ones from there on.

        A part is submitted while the one before it runs, so that its copy to the device costs no time.
        """
        if count == 0:
            return [submit(slice(0, 0))()]
        results: list[Result] = []
        running: deque[tuple[int, Callable[[], Result]]] = deque()
        done = 0
        while done < count:
            begun, size = done + sum(size for size, _ in running), 0
            try:
                while begun < count and len(running) < _PARTS_IN_FLIGHT:
                    size = min(self.batch_limits[lane], count - begun)
                    running.append((size, submit(slice(begun, begun + size))))
                    begun += size
                size, arrived = running.popleft()
                results.append(arrived())
                rows = self._functions[lane].padded(size)
                self._rows[lane] += rows
                self._padding[lane] += rows - size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._out_of_memory += 1
                if size <= 1:
                    raise
            else:
                done += size
                continue
            # Only now: while the error was handled, its traceback held the tensors of the part that failed.
            running.clear()
            self._halve(lane, size)
        return results

    def _halve(self, lane: LaneName, size: int) -> None:
        self.batch_limits[lane] = size // 2
        self._functions[lane].discard(above=size // 2)
        release_memory(self._tokenizer.device)
        log.warning("a %s batch of %d does not fit into memory; from now on %d at once", lane, size, size // 2)

    def _need_generator(self) -> Generator:
        if self._generator is None:
            raise TypeError("no generator is loaded")
        return self._generator

    def warm_up(self, known_limits: Mapping[str, int] | None = None) -> None:
        """Finds the limits by trying, or takes those found by a worker before, and records the functions up to them. What
        happens once on a device happens here, and not to the first request. Called by the thread that will run batches.
        """
        if known_limits is not None and known_limits.keys() == self.batch_limits.keys():
            for lane in self.batch_limits:
                self.batch_limits[lane] = min(known_limits[lane], self._largest)
                self._trial(lane)(1)
        else:
            self._find_limits()
        if self._recorder is not None:
            self._record(self._recorder)
        calibrate(self._tokenizer, self.batch_limits["encode"])
        log.info("images of a batch, at most: %s", self.batch_limits)

    def _find_limits(self) -> None:
        on_cpu = self._tokenizer.device.type == "cpu"
        for lane in self.batch_limits:
            self.batch_limits[lane] = find_batch_limit(
                self._trial(lane),
                largest=self._largest,
                seconds=self._batch_seconds,
                trial_seconds=_CPU_TRIAL_SECONDS if on_cpu else _CUDA_TRIAL_SECONDS,
                is_out_of_memory=is_out_of_memory,
                measure=cpu_seconds if on_cpu else wall_seconds,
            )
            release_memory(self._tokenizer.device)

    def _record(self, recorder: Recorder) -> None:
        for lane in self._functions:
            try:
                self._record_lane(lane, recorder)
            except RuntimeError as error:
                log.warning("no CUDA graphs (%s): batches are launched kernel by kernel, which is slower", error)
                for function in self._functions.values():
                    function.discard()
                return

    def _record_lane(self, lane: LaneName, recorder: Recorder) -> None:
        function = self._functions[lane]
        while True:
            limit = self.batch_limits[lane]
            try:
                function.record(batch_sizes(limit), recorder)
            except RuntimeError as error:
                if not is_out_of_memory(error) or limit == 1:
                    raise
            else:
                return
            function.discard()
            self._halve(lane, limit)

    def _trial(self, lane: LaneName) -> Callable[[int], object]:
        """Runs a batch of a size, whatever the limit is."""
        noise, tokenizer = np.random.default_rng(0), self._tokenizer
        size, num_tokens, codes = tokenizer.image_size, tokenizer.num_tokens, tokenizer.codebook_size
        if lane == "encode":
            images = lru_cache(1)(lambda count: noise.integers(0, 256, (count, size, size, 3), np.uint8))
            return lambda count: tokenizer.encode(images(count))
        if lane == "decode":
            tokens = lru_cache(1)(lambda count: noise.integers(0, codes, (count, num_tokens), np.int64))
            return lambda count: tokenizer.decode(tokens(count))
        generator = self._need_generator()
        settings = generator.settings(guidance_scale=2.0, guidance_decay="constant")
        rows = lru_cache(1)(lambda count: [generator.row(0, seed, settings) for seed in range(count)])
        return lambda count: generator.advance(rows(count))


def _joined(parts: Sequence[Tensor]) -> npt.NDArray[Any]:
    """Tensors one after another as one array; of a single one, the same memory."""
    arrays = [part.numpy() for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def open_device(settings: Settings, *, known_limits: Mapping[str, int] | None = None) -> ModelDevice:
    """Loads the models that the settings name, and warms them up. Called in the thread that will own them.
    ``known_limits`` are the ``batch_limits`` of a device opened before with the same settings, which saves finding them.

    Raises ``ValueError``, ``LookupError`` or ``CheckpointError`` with a message for the operator.
    """
    device = _choose_device(settings.devices)
    recorder = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        recorder = CudaRecorder(device) if settings.cuda_graphs else None
    else:
        torch.set_num_threads(settings.device_threads)
    tokenizer = load_tokenizer(
        settings.tokenizer, weights=settings.tokenizer_weights, device=str(device), dtype=settings.dtype
    )
    if not tokenizer.is_discrete:
        raise ValueError(f"{tokenizer.name} is a VAE: it has no token ids to serve; choose another tokenizer")
    models = ModelDevice(
        tokenizer,
        _open_generator(settings, tokenizer, str(device)),
        max_batch_size=settings.max_batch_size,
        batch_seconds=settings.batch_seconds,
        recorder=recorder,
    )
    models.warm_up(known_limits)
    return models


def _choose_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    device = torch.device(("cuda" if available else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not available:
        raise ValueError(f"PyTorch {torch.__version__} finds no CUDA device here for TITOK_DEVICES={name}")
    # Streams and graphs belong to a device by its number.
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _open_generator(settings: Settings, tokenizer: Tokenizer, device: str) -> Generator | None:
    if settings.generator == "off":
        return None
    automatic = settings.generator in (None, "auto")
    name = tokenizer.name if automatic else str(settings.generator)
    # Weights that are not the variant's own make ids that the published generator was not trained on.
    strange = name not in GENERATORS or settings.tokenizer_weights is not None
    if automatic and strange and settings.generator_weights is None:
        log.warning("no generator: none is known for these tokenizer weights (TITOK_GENERATOR_WEIGHTS names one)")
        return None
    generator = load_generator(name, weights=settings.generator_weights, device=device, dtype=settings.dtype)
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise CheckpointError(
            f"the generator makes {generator.num_tokens} tokens of {generator.codebook_size} codes, the tokenizer "
            f"{tokenizer.name} reads {tokenizer.num_tokens} of {tokenizer.codebook_size}"
        )
    return generator
