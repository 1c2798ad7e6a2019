"""Runs an evaluation: from images and weights to a report.

::

    validation photographs ─> tokenizer, placeholders ─> reconstruction ─┐
    training photographs ───> Lite0 features (kept in the cache) ────────┼─> Report
    classes, seeds ─────────> generator, tokenizer ────> generation ─────┤
    reference .npz ─────────> Inception features ──────> published ──────┘

Without training photographs there are no metrics that compare with them; without data there is the published protocol of
the generator alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids, Pixels
from models.checkpoints.loading import HubFile
from models.checkpoints.registry import GENERATORS
from models.data.datasets import InMemoryDataset, has_training_images, load_dataset
from models.data.sources import Split
from models.errors import DataError
from models.evaluation.features import cached_embeddings
from models.evaluation.generation import Generation, Samples, evaluate_generation, generate_samples, match_classes
from models.evaluation.inception import load_feature_network
from models.evaluation.lengths import codecs_by_length
from models.evaluation.lite0 import load_lite0
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.placeholders import Codec, fit_principal_components, placeholders
from models.evaluation.progress import Track, no_progress
from models.evaluation.published import (
    InceptionFigures,
    Reference,
    array_batches,
    extract,
    inspect_reference,
    published_figures,
    read_reference,
)
from models.evaluation.reconstruction import Reconstruction, TokenizerCodec, evaluate_reconstruction
from models.evaluation.report import Report
from models.evaluation.spool import Spool
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
    ``lengths``: numbers of tokens at which a prefix-decodable tokenizer is measured, too.
    ``images`` and ``references`` limit the validation and training images, None for all. ``baselines``: with the codecs of
    similar size. ``sample_posterior``: reconstructions of a VAE are of a sample instead of the mean.
    ``inception_weights`` adds the published protocol, with the ``reference`` (``.npz``) of generated images instead of the
    training images. The networks run on ``device``.
    """

    data: Path | None
    cache: Path
    tokenizer: str
    weights: str | Path | HubFile | None = None
    with_generator: bool = True
    generator_weights: str | Path | HubFile | None = None
    sources: Mapping[str, str] | None = None
    lengths: Sequence[int] = ()
    images: int | None = None
    references: int | None = None
    per_class: int = 20
    device: str = "cpu"
    preset: str = "published"
    baselines: bool = True
    sample_posterior: bool = False
    inception_weights: Path | None = None
    reference: Path | None = None
    keep_images: bool = False


def evaluate(settings: EvaluationSettings, *, track: Track = no_progress) -> Report:
    """Evaluates reconstructions, and generated images if there is a generator and something to compare them with.

    Raises ``DataError``, ``ModuleNotFoundError``, ``CheckpointError``, those of ``load_tokenizer`` and ``load_generator``,
    and ``ValueError`` for a generator or a length that does not fit, all before the computation starts.
    """
    if settings.reference is not None and settings.inception_weights is None:
        raise ValueError("--reference is compared by Inception features: give --inception-weights, too")
    device = select_device(settings.device)
    protocol = None if settings.inception_weights is None else _PublishedProtocol(settings, device, track)
    tokenizer = load_tokenizer(settings.tokenizer, weights=settings.weights, device=str(device))
    if settings.lengths and not tokenizer.is_discrete:
        raise ValueError(f"{tokenizer.name} is a VAE, which has no shorter lengths to evaluate")
    for length in settings.lengths:
        tokenizer.code_format.of_length(length)  # raises for one that it does not decode
    generator = _load_generator(settings, tokenizer)
    if settings.data is None and generator is None:
        raise ValueError(
            "there is nothing to evaluate: give --data, or for a generator alone --reference and --inception-weights"
        )
    photographs = None if settings.data is None else _Photographs(settings, settings.data, tokenizer, track)
    names, classes = _classes(generator, photographs, settings.sources)
    subject = {"tokenizer": tokenizer.name, "tokenizer_revision": tokenizer.revision}
    if generator is not None:
        subject |= {"generator": generator.name, "generator_revision": generator.revision, "preset": settings.preset}
    reconstruction = None if photographs is None else photographs.reconstruct()
    samples = None if generator is None else _generate(settings, generator, tokenizer, classes, track)
    return Report(
        subject=subject,
        data={
            "image_size": tokenizer.image_size,
            "validation_photographs": 0 if photographs is None else len(photographs.images),
            "training_photographs": 0 if photographs is None else len(photographs.references),
        },
        reconstruction=reconstruction,
        generation=None if photographs is None or samples is None else photographs.compare(samples),
        published={} if protocol is None else protocol.measure(photographs, reconstruction, samples),
        class_names=names,
        originals=None if photographs is None else photographs.images,
        training_images=None if photographs is None else photographs.training.images,
        samples=samples,
    )


class _Photographs:
    """``images`` of the validation set, and the set ``training``, which may be empty, with its ``references``."""

    def __init__(self, settings: EvaluationSettings, folder: Path, tokenizer: Tokenizer, track: Track) -> None:
        self._settings, self._tokenizer, self._track = settings, tokenizer, track
        self._network = load_lite0(tokenizer.device)
        self._codec = TokenizerCodec(tokenizer, sample_posterior=settings.sample_posterior)
        self._baselines = placeholders(self._codec.num_bytes) if settings.baselines else []
        splits: tuple[Split, ...] = ("train", "val") if has_training_images(folder) else ("val",)
        *training, self._validation = (
            load_dataset(folder, split, size=tokenizer.image_size, cache=settings.cache)
            for split in track(splits, "reading images")
        )
        self.images = self._validation.images[: settings.images]
        self.training = (
            training[0] if training else replace(self._validation, images=self.images[:0], labels=np.empty(0, np.int64))
        )
        self.names = self.training.names
        if self.names != self._validation.names:
            raise DataError(f"the training and the validation images in {folder} have different classes")

    @cached_property
    def references(self) -> ReferenceSet:
        """Features and classes of the training images."""
        features = cached_embeddings(
            self._network,
            self.training.images[: self._settings.references],
            cache=self._settings.cache,
            description="features of training images",
            track=self._track,
        )
        labels = torch.from_numpy(self.training.labels[: len(features)])
        return ReferenceSet(features, labels, device=self._network.device)

    def reconstruct(self) -> Reconstruction:
        """Metrics of the tokenizer, of PCA and of the other baselines."""
        codecs: list[Codec] = [codec := self._codec]
        if len(self.training) and self._settings.baselines:
            fitted = self.training.images[: self._settings.references]
            codecs.append(fit_principal_components(fitted, codec.num_bytes, track=self._track))
        codecs += codecs_by_length(
            codec,
            self._settings.lengths,
            self.training.images[: self._settings.references] if self._settings.baselines else None,
            track=self._track,
        )
        keeps = self._settings.keep_images or self._settings.inception_weights is not None
        return evaluate_reconstruction(
            self.images,
            self._validation.labels[: len(self.images)],
            codecs=[*codecs, *self._baselines],
            network=self._network,
            references=self.references.of_classes(_large_classes(self.training)),
            patch_size=self._tokenizer.patch_size,
            examples=np.unique(np.linspace(0, len(self.images) - 1, _EXAMPLES).astype(np.int64)).tolist(),
            keep=Spool(self._settings.cache) if keeps else None,
            track=self._track,
        )

    def compare(self, samples: Samples) -> Generation | None:
        """Metrics of generated images against training images, None if there are none."""
        if not len(self.training):
            return None
        return evaluate_generation(
            samples,
            preset=self._settings.preset,
            network=self._network,
            tokenizer=self._tokenizer,
            references=self.references,
            reference_images=self.training.images,
            photographs=self._validation.images,
            labels=self._validation.labels,
            track=self._track,
        )


class _PublishedProtocol:
    """Metrics of the published protocol, by features of the network in ``inception_weights``."""

    def __init__(self, settings: EvaluationSettings, device: torch.device, track: Track) -> None:
        assert settings.inception_weights is not None  # noqa: S101 - there is no protocol otherwise
        self._settings, self._track = settings, track
        self._network = load_feature_network(settings.inception_weights, device)
        if settings.reference is not None:
            inspect_reference(settings.reference, self._network)  # raises for a file that is no reference

    def measure(
        self, photographs: _Photographs | None, reconstruction: Reconstruction | None, samples: Samples | None
    ) -> dict[str, InceptionFigures]:
        """The figures of what there is."""
        found = {}
        if photographs is not None and reconstruction is not None and reconstruction.reconstructions is not None:
            reference = Reference.of(self._features(photographs.images, "photographs"))
            features = self._features(reconstruction.reconstructions, "reconstructions")
            # As the authors' evaluator: one split.
            found["reconstruction"] = published_figures(features, reference, self._network, split_size=len(features))
        if samples is not None:
            reference = self._reference(photographs, samples)
            features = self._features(samples.images, "generated images")
            found["generation"] = published_figures(features, reference, self._network)
        return found

    def _reference(self, photographs: _Photographs | None, samples: Samples) -> Reference:
        if self._settings.reference is not None:
            return read_reference(self._settings.reference, self._network, folder=self._settings.cache)
        assert photographs is not None  # noqa: S101 - no generator is loaded otherwise
        rows = torch.nonzero(torch.isin(photographs.references.labels, samples.labels))[:, 0].numpy()
        return Reference.of(self._features(photographs.training.images, "training images", rows))

    def _features(self, images: Pixels, kind: str, rows: Ids | None = None) -> Tensor:
        batches = array_batches(images, rows, description=f"Inception features of {kind}", track=self._track)
        return extract(self._network, batches, folder=self._settings.cache)


def _generate(
    settings: EvaluationSettings, generator: Generator, tokenizer: Tokenizer, classes: Sequence[int], track: Track
) -> Samples:
    per_class, preset, folder = settings.per_class, settings.preset, settings.cache
    return generate_samples(
        generator, tokenizer, classes, per_class=per_class, preset=preset, folder=folder, track=track
    )


def _load_generator(settings: EvaluationSettings, tokenizer: Tokenizer) -> Generator | None:
    """The generator, if there is one and something to compare its images with."""
    exists = settings.generator_weights is not None or settings.tokenizer in GENERATORS
    comparable = settings.reference is not None or (settings.data is not None and has_training_images(settings.data))
    if not (settings.with_generator and exists and comparable):
        return None
    generator = load_generator(settings.tokenizer, weights=settings.generator_weights, device=str(tokenizer.device))
    generator.settings(settings.preset)  # raises for an unknown preset
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise ValueError(
            f"the generator makes {generator.num_tokens} of {generator.codebook_size} codes, and the tokenizer has "
            f"{tokenizer.num_tokens} of {tokenizer.codebook_size}: they do not belong together"
        )
    return generator


def _classes(
    generator: Generator | None, photographs: _Photographs | None, sources: Mapping[str, str] | None
) -> tuple[Sequence[str], list[int]]:
    """Names of classes, the data's if it has training images, and the index among them of each of the generator's."""
    if generator is None:
        return (), []
    if photographs is None or not len(photographs.training):
        return generator.class_names, list(range(generator.num_classes))
    if sources is None and generator.class_sources is not None:
        sources = dict(zip(generator.class_names, generator.class_sources, strict=True))
    return photographs.names, match_classes(generator.class_names, photographs.names, sources)


def _large_classes(train: InMemoryDataset) -> torch.Tensor:
    """Classes with enough training images, int64, without that of unlabelled images."""
    counts = np.bincount(train.labels, minlength=len(train.names))
    named = [name.rpartition("/")[2] != _NO_CLASS for name in train.names]
    return torch.from_numpy(np.flatnonzero((counts >= _MIN_TRAINING_IMAGES) & np.array(named)))
