"""What the recipes for tokenizers share: augmented batches, codebook, validation metrics and sample images."""

import logging
from abc import abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from models.arrays import Ids
from models.checkpoints.configuration import config_document
from models.data.datasets import ImageDataset
from models.errors import ConfigError
from models.evaluation.measures import entropy_bits, seam_ratio
from models.evaluation.similarity import psnr
from models.networks.titok import TiTok
from models.runtime.transfers import to_device
from models.training.checkpoints import save_checkpoint
from models.training.codebook import Codebook
from models.training.config import TokenizerRun
from models.training.distributed import own_rows, world_size
from models.training.seeding import batch_rows, check_count, seeded_generator
from models.training.tail_drop import TailDrop
from models.training.task import Step, Task

log = logging.getLogger(__name__)

SAMPLE_IMAGES = 16
# Share of the codes that a run uses soon after its start unless its codebook collapses.
COLLAPSED = 0.05
EVALUATION_BATCH = 64


class Reconstructed(NamedTuple):
    """Images [B, 3, S, S] in [0, 1] after encoding and decoding, and their ids [B, K], None for a VAE."""

    images: Tensor
    ids: Tensor | None


class TokenizerTask(Task[TiTok]):
    """A TiTok network and its images."""

    run: TokenizerRun

    def __init__(
        self,
        run: TokenizerRun,
        network: TiTok,
        train: ImageDataset,
        validation: ImageDataset,
        device: torch.device | str,
    ) -> None:
        super().__init__(run, network, device)
        check_count(len(train), run.schedule)
        self.train = train
        self.validation = validation
        self.codebook = Codebook(network, run.codebook) if run.network.quantize_mode == "vq" else None
        if self.codebook is not None:
            self.parts["codebook"] = self.codebook
        self.tail_drop = None if run.prefix is None else TailDrop(run.prefix, run.network)
        if self.tail_drop is None and run.network.min_latent_tokens is not None:
            raise ConfigError("network.min_latent_tokens needs the section prefix, which trains shorter lengths")

    @abstractmethod
    def reconstruct(self, network: TiTok, images: Tensor) -> Reconstructed:
        """Encodes and decodes images [B, 3, S, S] in [0, 1]."""

    def more_metrics(self, network: TiTok, images: Tensor, outputs: Reconstructed) -> dict[str, Tensor]:  # noqa: ARG002
        """Further metrics of validation images, [B] each; their means are logged."""
        return {}

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Initialises codes, and re-initialises idle ones."""
        if self.codebook is not None:
            self.codebook.after_step(step, optimizers)
        return {}

    def batch(self, step: Step) -> Tensor:
        """This process's augmented images of a part of the step, [B, 3, S, S] on the device."""
        schedule = self.run.schedule
        count = schedule.batch_size // schedule.micro_batches
        rows = own_rows(count)

        def crops(number: int, part: int, generator: torch.Generator) -> tuple[Ids, NDArray[np.float32]]:
            positions = torch.rand(count, 2, generator=generator).numpy()
            return batch_rows(len(self.train), schedule, number, part)[rows], positions[rows]

        images = self.train.batch(*crops(step.number, step.part, step.generator))
        following = divmod(step.number * schedule.micro_batches + step.part + 1, schedule.micro_batches)
        self.train.prefetch(*crops(*following, seeded_generator(schedule.seed, *following)))
        return augment(images, step.generator, max_shift=self.run.data.max_shift, batch_size=count, rows=rows)

    def keep_data_on_device(self) -> None:
        """Copies the images to a CUDA device, if they fit."""
        self.train, self.validation = self.train.kept_on_device(), self.validation.kept_on_device()

    def quantize(self, images: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's input [B, K, C] for images, with gradients to the encoder, and the losses of the bottleneck."""
        with self.autocast():
            if self.codebook is None:
                posterior = self.network.posterior(images)
                count, *shape = posterior.mean.shape
                noise = torch.randn(count * world_size(), *shape, generator=step.generator)[
                    own_rows(count * world_size())
                ]
                # Summed over positions and channels and divided by the batch size, as published.
                return posterior.mean + posterior.std * to_device(noise, self.device), {
                    "divergence": posterior.kl().sum() / len(images)
                }
            latents = self.network.latents(images)
        return self.codebook.quantize(latents, step)

    def drop_tail(self, codes: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """The decoder's input and its mask: all codes [B, K, C] and None without ``prefix``, else see :class:`TailDrop`."""
        return (codes, None) if self.tail_drop is None else self.tail_drop(codes, step)

    def bottleneck_loss(self, parts: dict[str, Tensor]) -> Tensor | float:
        """The weighted sum of the losses that :meth:`quantize` returned."""
        weights = {"quantizer": self.run.losses.quantizer_weight, "divergence": self.run.losses.kl_weight}
        return sum(weight * parts[name] for name, weight in weights.items() if name in parts)

    @torch.no_grad()
    def evaluate(self, network: TiTok) -> dict[str, float]:
        """PSNR (dB, mean over images), seams, codes used and their entropy, on the first validation images."""
        count = min(self.run.data.validation_images, len(self.validation))
        counts = torch.zeros(self.run.network.codebook_size, dtype=torch.int64)
        metrics: dict[str, list[Tensor]] = {}
        reconstructions = []
        for rows in np.array_split(np.arange(count), -(-count // EVALUATION_BATCH)):
            images = self.validation.batch(rows).to(self.device)
            outputs = self.reconstruct(network, images)
            found = {"psnr": psnr(outputs.images, images), **self.more_metrics(network, images, outputs)}
            for name, values in found.items():
                metrics.setdefault(name, []).append(values.cpu())
            reconstructions.append(outputs.images.cpu())
            if outputs.ids is not None:
                counts += torch.bincount(outputs.ids.flatten().cpu(), minlength=len(counts))
        means = {f"validation_{name}": float(torch.cat(values).mean()) for name, values in metrics.items()}
        means["seam_ratio"] = seam_ratio(torch.cat(reconstructions), self.run.network.decoder_patch_size)
        if self.codebook is not None:
            used = int((counts > 0).sum())
            means |= {"codes_used": used, "entropy_bits": entropy_bits(counts)}
            if used < COLLAPSED * min(len(counts), int(counts.sum())):
                log.warning("%d of %d codes are in use: the codebook is collapsing", used, len(counts))
        return means

    @torch.no_grad()
    def pictures(self, network: TiTok) -> Tensor:
        """Validation images above, their reconstructions below: uint8 [2S, 16S, 3]."""
        images = self.validation.batch(np.arange(min(SAMPLE_IMAGES, len(self.validation)))).to(self.device)
        rows = torch.stack([images, self.reconstruct(network, images).images])  # [2, B, 3, S, S]
        return (rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2) * 255.0).round().to(torch.uint8)

    def export(self, network: TiTok, folder: Path) -> None:
        """See :meth:`Task.export`."""
        save_checkpoint(folder, config_document(self.run.network), network.state_dict())


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    max_shift: int,
    batch_size: int | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Flips half of the images [B, 3, S, S], and shifts each by up to ``max_shift`` pixels, repeating the border.

    If the images are the ``rows`` of a larger batch of ``batch_size``, they are augmented as in the whole batch.
    """
    count, device, size = batch_size or len(images), images.device, images.shape[-1]
    flipped = to_device((torch.rand(count, generator=generator) < 0.5)[rows], device)
    shifts = to_device(torch.randint(-max_shift, max_shift + 1, (2, count, 1), generator=generator)[:, rows], device)
    y, x = (torch.arange(size, device=device) + shifts).clamp_(0, size - 1)  # [B, S] each
    x = torch.where(flipped[:, None], x.flip(1), x)
    image = torch.arange(len(images), device=device)[:, None, None, None]
    channels = torch.arange(3, device=device)[None, :, None, None]
    return images[image, channels, y[:, None, :, None], x[:, None, None, :]]
