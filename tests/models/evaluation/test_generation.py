"""Figures of generated images: each tells the fault it is for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoints.registry import IMAGENET_CLASSES
from models.evaluation.features import as_tensor
from models.evaluation.generation import Generation, Samples, evaluate_generation, generate_samples, match_classes
from models.evaluation.lite0 import Lite0
from models.evaluation.neighbours import ReferenceSet
from models.generation import Generator
from models.tokenizer import Tokenizer

# Pieces of one photograph are a class: 0, 1, 2, 3, of four images each.
LABELS = np.arange(16) // 4


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 6, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def measure(
    lite0: Lite0, tokenizer: Tokenizer, crops: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> Generation:
    """Training photographs are the crops and noisy ones, validation photographs mirrored ones."""
    train = np.concatenate([noisy(crops, seed) for seed in range(3)])
    with torch.inference_mode():
        references = ReferenceSet(lite0.embed(as_tensor(train)), torch.from_numpy(np.tile(LABELS, 3)))
    return evaluate_generation(
        Samples(images=images, tokens=tokenizer.encode(images), labels=torch.from_numpy(labels)),
        preset="demo",
        network=lite0,
        tokenizer=tokenizer,
        references=references,
        reference_images=train,
        photographs=noisy(np.ascontiguousarray(crops[:, ::-1]), 9),
        labels=LABELS,
    )


def test_photographs_of_the_right_class_are_recovered_and_others_are_not(
    lite0: Lite0, tokenizer: Tokenizer, crops: np.ndarray
) -> None:
    right = measure(lite0, tokenizer, crops, noisy(crops, 5), LABELS)
    wrong = measure(lite0, tokenizer, crops, noisy(crops, 5), (LABELS + 1) % 4)
    assert right.class_agreement.generated == 1.0
    assert wrong.class_agreement.generated == 0.0
    assert right.class_agreement.ratio == 1 / right.class_agreement.real
    assert right.frechet_distance.generated < right.frechet_distance.real  # these are the training photographs, nearly


def test_only_the_classes_that_were_asked_for_take_part(lite0: Lite0, tokenizer: Tokenizer, crops: np.ndarray) -> None:
    # The same images of a third class for both: each is seen as one of the two, and so is right for one of them.
    found = measure(lite0, tokenizer, crops, noisy(crops[[8, 9, 10, 11] * 2], 5), LABELS[:8])
    assert found.class_agreement.generated == 0.5
    assert (found.images, found.classes, found.real_images) == (8, 2, 8)


def test_one_image_for_every_seed_is_no_diversity(lite0: Lite0, tokenizer: Tokenizer, crops: np.ndarray) -> None:
    repeated = crops[LABELS * 4]
    same = measure(lite0, tokenizer, crops, repeated, LABELS)
    assert (same.diversity.generated, same.diversity.ratio) == (0.0, 0.0)
    assert same.identical_pairs == 4 * 6
    varied = measure(lite0, tokenizer, crops, crops, LABELS)
    assert varied.diversity.ratio == pytest.approx(1.0, abs=0.2)


def test_a_copy_is_closer_than_any_photograph_even_mirrored(
    lite0: Lite0, tokenizer: Tokenizer, crops: np.ndarray
) -> None:
    mirrored = np.ascontiguousarray(noisy(crops, 0)[:, :, ::-1])
    nearest = measure(lite0, tokenizer, crops, mirrored, LABELS).nearest
    assert nearest.smallest_rmse.generated == 0.0 < nearest.smallest_rmse.real
    assert nearest.most_shared_tokens is not None
    assert nearest.most_shared_tokens.generated == 1.0
    exact = measure(lite0, tokenizer, crops, noisy(crops, 0), LABELS).nearest
    assert exact.rows.tolist() == list(range(16))
    assert exact.median_distance.generated == pytest.approx(0.0, abs=1e-6)
    assert exact.median_distance.real > 0.05


def test_a_vae_has_no_tokens_to_share(lite0: Lite0, vae: Tokenizer, crops: np.ndarray) -> None:
    samples = Samples(images=crops, tokens=torch.arange(16)[:, None], labels=torch.from_numpy(LABELS))
    with torch.inference_mode():
        references = ReferenceSet(lite0.embed(as_tensor(crops)), torch.from_numpy(LABELS))
    found = evaluate_generation(
        samples,
        preset="demo",
        network=lite0,
        tokenizer=vae,
        references=references,
        reference_images=crops,
        photographs=crops,
        labels=LABELS,
    )
    assert found.nearest.mean_shared_tokens is None
    assert math.isfinite(found.nearest.smallest_rmse.generated)


def test_samples_are_as_many_of_each_class_with_seeds_of_their_own(
    generator: Generator, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    samples = generate_samples(generator, tokenizer, [7, 5, 9], per_class=11, preset="fast", folder=tmp_path)
    assert samples.labels.tolist() == [7] * 11 + [5] * 11 + [9] * 11
    for row, label in ((12, 1), (32, 2)):  # of the first and of the second batch
        alone = generator.generate([label], seeds=[row], preset="fast")
        assert torch.equal(samples.tokens[row : row + 1], alone)
        assert np.array_equal(samples.images[row : row + 1], tokenizer.decode(alone).numpy())
    assert len(torch.unique(samples.tokens, dim=0)) == 33


def test_classes_match_by_their_last_part_or_in_full() -> None:
    photographed = ["pets/Dog", "pets/cat", "sea/clams"]
    assert match_classes(["cat", "dog"], photographed) == [1, 0]
    assert match_classes(["clam", "cat"], photographed, {"clam": "sea/clams", "cat": "pets/cat"}) == [2, 1]


def test_imagenet_classes_match_by_wordnet_id_and_by_number() -> None:
    folders = [f"n{10_000_000 - 7 * number:08d}" for number in range(1000)]  # in an order of their own
    assert match_classes(IMAGENET_CLASSES, folders) == list(range(999, -1, -1))
    assert match_classes(["cat", "dog"], ["0", "1", "2"]) == [0, 1]
    with pytest.raises(ValueError, match="is none of the data's classes"):
        match_classes(IMAGENET_CLASSES, folders[1:])


@pytest.mark.parametrize(
    ("photographed", "sources", "message"),
    [
        (["sea/clams"], None, "'clam' is none of the data's classes; --classes CONFIG.toml"),
        (["sea/clam", "food/clam"], None, "'clam' is 2 of the data's classes"),
        (["sea/clam"], {"clam": "sea/clams"}, "'clam' is none of"),
        (["sea/clam"], {}, "'clam' is none of"),
    ],
    ids=["no such", "several", "source not there", "no source"],
)
def test_a_class_name_that_matches_none_or_several_is_an_error(
    photographed: list[str], sources: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        match_classes(["clam"], photographed, sources)
