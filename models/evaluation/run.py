"""The whole of an evaluation: from photographs and weights to a report.

::

    validation photographs ─> tokenizer, placeholders ─> reconstruction ─┐
    training photographs ───> Lite0 features (kept in the cache) ────────┼─> Report
    classes, seeds ─────────> generator, tokenizer ────> generation ─────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoints.loading import HubFile
from models.checkpoints.registry import GENERATORS
from models.data.datasets import InMemoryDataset, load_dataset
from models.data.sources import Split
from models.errors import DataError
from models.evaluation.features import cached_embeddings
from models.evaluation.generation import Generation, evaluate_generation, generate_samples, match_classes
from models.evaluation.inception import InceptionFigures, check_inception, inception_figures
from models.evaluation.lite0 import Lite0, load_lite0
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.placeholders import fit_principal_components, placeholders
from models.evaluation.progress import Track, no_progress
from models.evaluation.reconstruction import TokenizerCodec, evaluate_reconstruction
from models.evaluation.report import Report
from models.generation import Generator, load_generator
from models.tokenizer import Tokenizer, load_tokenizer

__all__ = ["EvaluationSettings", "evaluate"]

# Fewer photographs of a class than this are too few for another one to be told by its neighbours.
_MIN_TRAINING_PHOTOGRAPHS = 400
_NO_CLASS = "unlabelled"
_EXAMPLES = 12
_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and on what.

    ``data`` is a folder that ``load_dataset`` reads, ``cache`` one for decoded photographs and features.
    ``with_generator`` counts where the tokenizer has one; ``sources`` are the data's names of its classes, by its own.
    ``images`` and ``references`` are how many validation and training photographs are taken, None for all.
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
    preset: str = "published"
    inception_weights: Path | None = None
    keep_images: bool = False


def evaluate(settings: EvaluationSettings, *, track: Track = no_progress) -> Report:
    """Measures everything that can be measured with what is there.

    Raises ``DataError``, ``Lite0Missing``, ``PlaceholdersMissing``, ``InceptionMissing``, those of
    ``load_tokenizer`` and ``load_generator``, and ``ValueError`` for a generator that does not fit; all of them before
    the work begins.
    """
    network = load_lite0()
    if settings.inception_weights is not None:
        check_inception(settings.inception_weights)
    tokenizer = load_tokenizer(settings.tokenizer, weights=settings.weights)
    generator = _generator(settings, tokenizer)
    codec = TokenizerCodec(tokenizer)
    baselines = placeholders(codec.num_bytes)
    train, validation = (
        load_dataset(settings.data, split, size=tokenizer.image_size, cache=settings.cache)
        for split in track(_SPLITS, "reading photographs")
    )
    if train.names != validation.names:
        raise DataError(f"the training and the validation photographs in {settings.data} have different classes")
    classes = None if generator is None else _classes(generator, train, settings.sources)

    references = _references(settings, network, train, track)
    images = validation.images[: settings.images]
    components = fit_principal_components(train.images[: settings.references], codec.num_bytes, track=track)
    reconstruction = evaluate_reconstruction(
        images,
        validation.labels[: settings.images],
        codecs=[codec, components, *baselines],
        network=network,
        references=references.of_classes(_well_known(train)),
        patch_size=tokenizer.patch_size,
        examples=np.unique(np.linspace(0, len(images) - 1, _EXAMPLES).astype(np.int64)).tolist(),
        keep=settings.keep_images or settings.inception_weights is not None,
        track=track,
    )
    generation = None
    if generator is not None and classes is not None:
        samples = generate_samples(
            generator, tokenizer, classes, per_class=settings.per_class, preset=settings.preset, track=track
        )
        generation = evaluate_generation(
            samples,
            preset=settings.preset,
            network=network,
            tokenizer=tokenizer,
            references=references,
            reference_images=train.images,
            photographs=validation.images,
            labels=validation.labels,
            track=track,
        )
    subject = {"tokenizer": tokenizer.name, "tokenizer_revision": tokenizer.revision}
    if generator is not None:
        subject |= {"generator": generator.name, "generator_revision": generator.revision}
    return Report(
        subject=subject,
        data={
            "image_size": tokenizer.image_size,
            "validation_photographs": len(images),
            "training_photographs": len(references),
        },
        reconstruction=reconstruction,
        generation=generation,
        published=_published(settings, images, reconstruction.reconstructions, generation, train, references, track),
        class_names=train.names,
        originals=images,
        training_images=train.images,
    )


def _generator(settings: EvaluationSettings, tokenizer: Tokenizer) -> Generator | None:
    there_is_one = settings.generator_weights is not None or settings.tokenizer in GENERATORS
    if not settings.with_generator or not there_is_one:
        return None
    generator = load_generator(settings.tokenizer, weights=settings.generator_weights)
    generator.settings(settings.preset)  # refuses a name that is none
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise ValueError(
            f"the generator makes {generator.num_tokens} of {generator.codebook_size} codes, and the tokenizer has "
            f"{tokenizer.num_tokens} of {tokenizer.codebook_size}: they do not belong together"
        )
    return generator


def _classes(generator: Generator, photographs: InMemoryDataset, sources: Mapping[str, str] | None) -> list[int]:
    if sources is None and generator.class_sources is not None:
        sources = dict(zip(generator.class_names, generator.class_sources, strict=True))
    return match_classes(generator.class_names, photographs.names, sources)


def _references(settings: EvaluationSettings, network: Lite0, train: InMemoryDataset, track: Track) -> ReferenceSet:
    features = cached_embeddings(
        network,
        train.images[: settings.references],
        cache=settings.cache,
        description="looking at training photographs",
        track=track,
    )
    return ReferenceSet(features, torch.from_numpy(train.labels[: settings.references]))


def _well_known(train: InMemoryDataset) -> torch.Tensor:
    """Classes with enough training photographs, int64; not that of photographs without a class."""
    counts = np.bincount(train.labels, minlength=len(train.names))
    named = [name.rpartition("/")[2] != _NO_CLASS for name in train.names]
    return torch.from_numpy(np.flatnonzero((counts >= _MIN_TRAINING_PHOTOGRAPHS) & np.array(named)))


def _published(
    settings: EvaluationSettings,
    images: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8] | None,
    generation: Generation | None,
    train: InMemoryDataset,
    references: ReferenceSet,
    track: Track,
) -> dict[str, InceptionFigures]:
    if settings.inception_weights is None or reconstructions is None:
        return {}
    pairs = {"reconstruction": (reconstructions, images)}
    if generation is not None:
        rows = np.flatnonzero(np.isin(train.labels[: len(references)], generation.samples.labels.numpy()))
        pairs["generation"] = (generation.samples.images, train.images[rows])
    return {
        name: inception_figures(*pairs[name], settings.inception_weights)
        for name in track(tuple(pairs), "measuring with Inception")
    }
