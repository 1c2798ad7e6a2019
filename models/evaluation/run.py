"""Runs an evaluation: from images and weights to a report.

::

    validation photographs ─> tokenizer, placeholders ─> reconstruction ─┐
    training photographs ───> Lite0 features (kept in the cache) ────────┼─> Report
    classes, seeds ─────────> generator, tokenizer ────> generation ─────┘
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.checkpoints.loading import HubFile
from models.checkpoints.registry import GENERATORS
from models.data.datasets import InMemoryDataset, load_dataset
from models.data.sources import SPLITS
from models.errors import DataError
from models.evaluation.features import cached_embeddings
from models.evaluation.generation import Generation, evaluate_generation, generate_samples, match_classes
from models.evaluation.inception import InceptionFigures, check_inception, inception_figures
from models.evaluation.lite0 import Lite0, load_lite0
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.placeholders import Codec, fit_principal_components, placeholders
from models.evaluation.progress import Track, no_progress
from models.evaluation.reconstruction import Reconstruction, TokenizerCodec, evaluate_reconstruction
from models.evaluation.report import Report
from models.generation import Generator, load_generator
from models.runtime.device_names import select_device
from models.tokenizer import Tokenizer, load_tokenizer

# Class agreement is measured for classes with at least as many training images.
_MIN_TRAINING_IMAGES = 400
_NO_CLASS = "unlabelled"
_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and on which data.

    ``data`` is a folder that ``load_dataset`` reads, ``cache`` one for decoded images and features. ``with_generator``
    has no effect if the tokenizer has no generator; ``sources`` maps the generator's class names to the data's.
    ``images`` and ``references`` limit the validation and training images, None for all. The networks run on ``device``.
    """

    data: Path
    cache: Path
    tokenizer: str
    weights: str | Path | HubFile | None = None
    with_generator: bool = True
    generator_weights: str | Path | HubFile | None = None
    sources: Mapping[str, str] | None = None
    images: int | None = None
    references: int | None = None
    per_class: int = 20
    device: str = "cpu"
    preset: str = "published"
    inception_weights: Path | None = None
    keep_images: bool = False


def evaluate(settings: EvaluationSettings, *, track: Track = no_progress) -> Report:
    """Evaluates reconstructions, and generated images if there is a generator.

    Raises ``DataError``, ``ModuleNotFoundError``, ``CheckpointError``, those of ``load_tokenizer`` and ``load_generator``,
    and ``ValueError`` for a generator that does not fit, all before the computation starts.
    """
    device = select_device(settings.device)
    network = load_lite0(device)
    if settings.inception_weights is not None:
        check_inception(settings.inception_weights)
    tokenizer = load_tokenizer(settings.tokenizer, weights=settings.weights, device=str(device))
    generator = _load_generator(settings, tokenizer)
    baselines = placeholders(TokenizerCodec(tokenizer).num_bytes)
    train, validation = (
        load_dataset(settings.data, split, size=tokenizer.image_size, cache=settings.cache)
        for split in track(SPLITS, "reading images")
    )
    if train.names != validation.names:
        raise DataError(f"the training and the validation images in {settings.data} have different classes")
    classes = None if generator is None else _match_classes(generator, train, settings.sources)
    evaluation = _Evaluation(settings, network, tokenizer, train, validation, track)
    reconstruction = evaluation.reconstruction(baselines)
    generation = None
    subject = {"tokenizer": tokenizer.name, "tokenizer_revision": tokenizer.revision}
    if generator is not None and classes is not None:
        generation = evaluation.generation(generator, classes)
        subject |= {"generator": generator.name, "generator_revision": generator.revision}
    return Report(
        subject=subject,
        data={
            "image_size": tokenizer.image_size,
            "validation_photographs": len(evaluation.images),
            "training_photographs": len(evaluation.references),
        },
        reconstruction=reconstruction,
        generation=generation,
        published=evaluation.published(reconstruction, generation),
        class_names=train.names,
        originals=evaluation.images,
        training_images=train.images,
    )


class _Evaluation:
    """The parts of an evaluation, over ``images`` of the validation set and ``references`` of the training set."""

    def __init__(
        self,
        settings: EvaluationSettings,
        network: Lite0,
        tokenizer: Tokenizer,
        train: InMemoryDataset,
        validation: InMemoryDataset,
        track: Track,
    ) -> None:
        self.settings = settings
        self.network = network
        self.tokenizer = tokenizer
        self.train = train
        self.validation = validation
        self.track = track
        self.images = validation.images[: settings.images]
        self.reference_images = train.images[: settings.references]
        features = cached_embeddings(
            network, self.reference_images, cache=settings.cache, description="features of training images", track=track
        )
        self.references = ReferenceSet(features, torch.from_numpy(train.labels[: settings.references]))

    def reconstruction(self, baselines: Sequence[Codec]) -> Reconstruction:
        """Metrics of the tokenizer, of PCA and of ``baselines``."""
        codec = TokenizerCodec(self.tokenizer)
        components = fit_principal_components(self.reference_images, codec.num_bytes, track=self.track)
        return evaluate_reconstruction(
            self.images,
            self.validation.labels[: self.settings.images],
            codecs=[codec, components, *baselines],
            network=self.network,
            references=self.references.of_classes(_large_classes(self.train)),
            patch_size=self.tokenizer.patch_size,
            examples=np.unique(np.linspace(0, len(self.images) - 1, _EXAMPLES).astype(np.int64)).tolist(),
            keep=self.settings.keep_images or self.settings.inception_weights is not None,
            track=self.track,
        )

    def generation(self, generator: Generator, classes: Sequence[int]) -> Generation:
        """Metrics of generated images of ``classes``."""
        preset = self.settings.preset
        samples = generate_samples(
            generator, self.tokenizer, classes, per_class=self.settings.per_class, preset=preset, track=self.track
        )
        return evaluate_generation(
            samples,
            preset=preset,
            network=self.network,
            tokenizer=self.tokenizer,
            references=self.references,
            reference_images=self.train.images,
            photographs=self.validation.images,
            labels=self.validation.labels,
            track=self.track,
        )

    def published(self, reconstruction: Reconstruction, generation: Generation | None) -> dict[str, InceptionFigures]:
        """The metrics of the published protocol; empty without Inception weights."""
        weights = self.settings.inception_weights
        if weights is None or reconstruction.reconstructions is None:
            return {}
        pairs = {"reconstruction": (reconstruction.reconstructions, self.images)}
        if generation is not None:
            rows = torch.isin(self.references.labels, generation.samples.labels)
            pairs["generation"] = (generation.samples.images, self.reference_images[rows.numpy()])
        return {
            name: inception_figures(*pairs[name], weights, device=self.tokenizer.device)
            for name in self.track(tuple(pairs), "measuring with Inception")
        }


def _load_generator(settings: EvaluationSettings, tokenizer: Tokenizer) -> Generator | None:
    exists = settings.generator_weights is not None or settings.tokenizer in GENERATORS
    if not settings.with_generator or not exists:
        return None
    generator = load_generator(settings.tokenizer, weights=settings.generator_weights, device=str(tokenizer.device))
    generator.settings(settings.preset)  # raises for an unknown preset
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise ValueError(
            f"the generator makes {generator.num_tokens} of {generator.codebook_size} codes, and the tokenizer has "
            f"{tokenizer.num_tokens} of {tokenizer.codebook_size}: they do not belong together"
        )
    return generator


def _match_classes(generator: Generator, dataset: InMemoryDataset, sources: Mapping[str, str] | None) -> list[int]:
    if sources is None and generator.class_sources is not None:
        sources = dict(zip(generator.class_names, generator.class_sources, strict=True))
    return match_classes(generator.class_names, dataset.names, sources)


def _large_classes(train: InMemoryDataset) -> torch.Tensor:
    """Classes with enough training images, int64, without that of unlabelled images."""
    counts = np.bincount(train.labels, minlength=len(train.names))
    named = [name.rpartition("/")[2] != _NO_CLASS for name in train.names]
    return torch.from_numpy(np.flatnonzero((counts >= _MIN_TRAINING_IMAGES) & np.array(named)))
