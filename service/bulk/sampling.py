"""``titok sample``: classes and seeds to tokens and images of a generator."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from models.arrays import Pixels
from models.generation import Generator, load_generator
from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.device_names import select_device
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.batches import submit_in_parts
from service.bulk.destination import Merge
from service.bulk.entries import Entry, Source
from service.bulk.errors import BulkError
from service.bulk.formats import TokenLayout, check_format, token_files
from service.bulk.image_formats import ImageOptions
from service.bulk.job import Job, Task
from service.bulk.manifest import VERSION, tokenizer_settings
from service.bulk.shards import Row, Shard
from service.inference.memory_fit import largest_that_fits, record_graphs

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Samples:
    """Images to generate, as a part of a source: ``per_class`` of each of ``classes``, in this order.

    Image i (from 0) has the seed ``seed`` + i, and the key i in eight digits. Raises ``BulkError`` for a seed above
    2**63 - 1.
    """

    classes: tuple[int, ...]
    per_class: int
    seed: int

    def __post_init__(self) -> None:
        if self.seed + self.count() > _MAX_SEED + 1:
            raise BulkError(
                f"the last image would have the seed {self.seed + self.count() - 1}; {_MAX_SEED} is the largest"
            )

    def count(self) -> int:
        """Number of images."""
        return len(self.classes) * self.per_class

    def entries(self, start: int) -> Iterator[Entry[int]]:
        """See ``Part``; an entry contains its seed."""
        for number in range(start, self.count()):
            label = self.classes[number // self.per_class]
            yield Entry(f"{number:08d}", label, partial(int, self.seed + number))


def source_of(samples: Samples, generator: str) -> Source[int]:
    """The images of a generator as a source."""
    return Source(generator, "generator", (samples,), "", labels="integer", total=samples.count())


class _Prompt(NamedTuple):
    """The input of the generator for an image."""

    label: int
    seed: int


class _Sample(NamedTuple):
    """Tokens int64 [K], and the image uint8 [S, S, 3] if there is to be one."""

    tokens: torch.Tensor
    image: Pixels | None


@dataclass(frozen=True, kw_only=True)
class SampleJob(Job[int]):
    """The options of ``titok sample``.

    ``samples``: the images to generate. ``generator_weights``, ``preset``: the generator and its sampling settings.
    ``format``: that of the tokens; None: they are not written. ``images``: how images are written; None: they are not.
    """

    samples: Samples
    generator_weights: str | None
    preset: str
    format: str | None
    images: ImageOptions | None

    @property
    def views(self) -> int:
        """See ``Job``."""
        return 1

    @property
    def merges(self) -> tuple[Merge, ...]:
        """See ``Job``."""
        return () if self.images is None else self.images.merges

    def check(self) -> None:
        """See ``Job``."""
        if self.format is not None:
            check_format(self.format)

    def load(self) -> "Sampling":
        """See ``Job``. Raises ``BulkError`` if generator and tokenizer do not fit each other."""
        device = select_device(self.device)
        job = self.on(device.type)
        # PyTorch, so that a resumed job computes the same pixels.
        tokenizer = load_tokenizer(
            job.tokenizer, weights=job.weights, device=str(device), dtype=job.dtype, runtime="torch"
        )
        generator = load_generator(job.tokenizer, weights=job.generator_weights, device=str(device), dtype=job.dtype)
        batch_size = _largest_batch(job, tokenizer, generator)
        return Sampling(replace(job, batch_size=batch_size), tokenizer, generator)


class Sampling(Task[_Prompt, _Sample, int]):
    """Generates tokens, and decodes them if images are written."""

    def __init__(self, job: SampleJob, tokenizer: Tokenizer, generator: Generator) -> None:
        if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
            raise BulkError(
                f"the generator makes {generator.num_tokens} tokens of {generator.codebook_size} codes; {tokenizer.name} "
                f"has {tokenizer.num_tokens} of {tokenizer.codebook_size}"
            )
        self.job: SampleJob = job
        self.device = tokenizer.device
        self.tokenizer, self.generator = tokenizer, generator
        self._layout = TokenLayout(1, tokenizer.num_tokens, "integer")
        predictor, decoder = generator.precision.generator, tokenizer.precision.decoder
        depends_on_batch = job.images is not None or not predictor.is_batch_invariant
        self.settings = {
            "version": VERSION,
            "source": {"name": generator.name, "kind": "generator", "classes": generator.class_names},
            "generator": {"revision": generator.revision},
            "sampling": {**asdict(job.samples), "preset": job.preset, **asdict(generator.settings(job.preset))},
            "tokenizer": tokenizer_settings(tokenizer, tokenizer.revision, None),
            "output": {"format": job.format, "dtype": "uint16", "shard_images": job.shard_images},
            "images": None if job.images is None else job.images.settings,
            "computed_in": {
                "dtype": predictor.name,
                "decoder_dtype": None if job.images is None else decoder.name,
                "batch_size": job.batch_size if depends_on_batch else None,
            },
        }

    def prepare(self, entry: Entry[int]) -> _Prompt:
        """See ``Task``."""
        assert isinstance(entry.label, int)  # noqa: S101  see ``Samples``
        return _Prompt(entry.label, entry.read())

    def submit(self, prepared: Sequence[_Prompt]) -> Callable[[], Iterable[_Sample]]:
        """Generates tokens, and submits them to the decoder. See ``Task``."""
        tokens = submit_in_parts(self._generate, torch.tensor(prepared, dtype=torch.int64), self.device)()
        if self.job.images is None:
            return lambda: [_Sample(ids, None) for ids in tokens]
        pending = submit_in_parts(self.tokenizer.submit_decode, tokens, self.device)
        return lambda: map(_Sample, tokens, pending().numpy())

    def _generate(self, prompts: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Labels and seeds int64 [B, 2] -> ids int64 [B, K]."""
        labels, seeds = prompts.T.tolist()
        tokens = self.generator.generate(labels, seeds=seeds, preset=self.job.preset)
        return lambda: tokens

    def finish(self, entry: Entry[int], output: _Sample) -> Row:
        """See ``Task``."""
        images = self.job.images
        image = b"" if images is None or output.image is None else images.encode(output.image)
        return Row(entry.key, entry.label, output.tokens.numpy().astype(np.uint16)[None], image)

    def files(self, shard: Shard) -> dict[str, bytes]:
        """See ``Task``."""
        job, size = self.job, self.tokenizer.image_size
        tokens = {} if job.format is None else token_files(shard, job.format, self._layout)
        return tokens | ({} if job.images is None else job.images.files(shard, size))


def _largest_batch(job: SampleJob, tokenizer: Tokenizer, generator: Generator) -> int:
    """The job's batch size, or a smaller one that fits into memory, with the steps of the generator recorded for it."""
    device, stepper = generator.device, generator.stepper
    if device.type == "cpu":
        return job.batch_size

    def run(limit: int) -> None:
        tokens = generator.generate([0] * limit, seeds=range(limit), preset=job.preset)
        if job.images is not None:
            tokenizer.decode(tokens)

    limit = record_graphs(stepper, lambda limit: {1, limit}, job.batch_size, CudaRecorder(device), device)
    return largest_that_fits(run, limit, stepper, device)
