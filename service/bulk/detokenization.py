"""``titok detokenize``: tokens to images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.arrays import Pixels
from models.codes.code_format import CodeError
from models.data.token_folder import TokenFolder, TokenizerIdentity
from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.device_names import select_device
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.batches import submit_in_parts
from service.bulk.destination import Merge
from service.bulk.entries import Entry
from service.bulk.errors import BulkError
from service.bulk.image_formats import ImageOptions
from service.bulk.job import Job, Task
from service.bulk.manifest import VERSION, source_settings, tokenizer_settings
from service.bulk.shards import Row, Shard
from service.bulk.token_folders import Tokens
from service.inference.memory_fit import largest_that_fits, record_graphs


@dataclass(frozen=True, kw_only=True)
class DetokenizeJob(Job[Tokens]):
    """The options of ``titok detokenize``.

    ``folder``: that of the source. ``view``: the index of the crops that are decoded; None: all. ``images``: how they are
    written.
    """

    folder: TokenFolder
    view: int | None
    images: ImageOptions

    @property
    def views(self) -> int:
        """See ``Job``; an entry is one crop."""
        return 1

    @property
    def merges(self) -> tuple[Merge, ...]:
        """See ``Job``."""
        return self.images.merges

    def load(self) -> "Detokenization":
        """See ``Job``. Raises ``DataError`` if another tokenizer made the tokens."""
        device = select_device(self.device)
        job = self.on(device.type)
        # PyTorch, so that a resumed job computes the same pixels.
        tokenizer = load_tokenizer(
            job.tokenizer, weights=job.weights, device=str(device), dtype=job.dtype, runtime="torch"
        )
        self.folder.check_tokenizer(TokenizerIdentity(tokenizer.name, tokenizer.digest, tokenizer.revision))
        return Detokenization(replace(job, batch_size=_largest_batch(tokenizer, job.batch_size)), tokenizer)


class Detokenization(Task[Tokens, Pixels, Tokens]):
    """Decodes tokens, and encodes the images as files. Raises ``BulkError`` for a VAE."""

    def __init__(self, job: DetokenizeJob, tokenizer: Tokenizer) -> None:
        self.job: DetokenizeJob = job
        self.device = tokenizer.device
        self.tokenizer = tokenizer
        self.settings = {
            "version": VERSION,
            "source": source_settings(job.source),
            "view": job.view,
            "tokenizer": tokenizer_settings(tokenizer, tokenizer.revision, job.folder.shape.num_tokens),
            # The size of a batch may change a pixel by one level.
            "computed_in": {"dtype": tokenizer.precision.decoder.name, "batch_size": job.batch_size},
            "images": {**job.images.settings, "shard_images": job.shard_images},
        }

    def prepare(self, entry: Entry[Tokens]) -> Tokens:
        """A crop's tokens uint16 [K], or fewer. Raises ``BulkError`` for a number that the tokenizer does not decode."""
        tokens = entry.read()
        try:
            self.tokenizer.code_format.of_length(len(tokens))
        except CodeError as error:
            raise BulkError(f"{entry.key} in {self.job.source.name}: {error}") from None
        return tokens

    def submit(self, prepared: Sequence[Tokens]) -> Callable[[], Iterable[Pixels]]:
        """Tokens -> images uint8 [B, S, S, 3]. See ``Task``."""
        ids = torch.from_numpy(self.tokenizer.code_format.pad([tokens.astype(np.int64) for tokens in prepared]))
        pending = submit_in_parts(self.tokenizer.submit_decode, ids, self.device)
        return lambda: pending().numpy()

    def finish(self, entry: Entry[Tokens], output: Pixels) -> Row:
        """See ``Task``."""
        return Row(entry.key, entry.label, entry.read()[None], self.job.images.encode(output))

    def files(self, shard: Shard) -> dict[str, bytes]:
        """See ``Task``."""
        return self.job.images.files(shard, self.tokenizer.image_size)


def _largest_batch(tokenizer: Tokenizer, batch_size: int) -> int:
    """The batch size, or a smaller one that fits into memory, with the decoder recorded for it."""
    device = tokenizer.device
    if device.type == "cpu":
        return batch_size
    limit = record_graphs(tokenizer.decoder, lambda limit: [limit], batch_size, CudaRecorder(device), device)
    zeros = torch.zeros(limit, tokenizer.num_tokens, dtype=torch.int64)
    return largest_that_fits(lambda limit: tokenizer.decode(zeros[:limit]), limit, tokenizer.decoder, device)
