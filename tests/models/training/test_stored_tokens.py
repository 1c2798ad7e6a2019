"""Token sets from folders of tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import ConfigError, DataError
from models.networks.generator import GeneratorConfig
from models.networks.titok import TiTok
from models.training.config import (
    GeneratorRun,
    GeneratorTraining,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerRun,
)
from models.training.generator import GeneratorTask
from models.training.loop import train
from models.training.pretrained import FrozenTokenizer
from models.training.stored_tokens import open_token_sets

IMAGES, VIEWS, K = 450, 3, 4


@pytest.fixture
def tokenizer(tokenizer_run: TokenizerRun) -> FrozenTokenizer:
    return FrozenTokenizer(TiTok(tokenizer_run.network), "a" * 64)


@pytest.fixture
def run() -> GeneratorRun:
    return GeneratorRun(
        network=GeneratorConfig(
            model_type="UViT",
            image_seq_len=K,
            codebook_size=64,
            condition_num_classes=3,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        ),
        schedule=ScheduleConfig(steps=120, batch_size=16, warmup_steps=5, evaluate_every=120, ema_decay=0.9),
        optimizer=OptimizerConfig(muon_lr=3e-3, adamw_lr=3e-3, precision="float32"),
        training=GeneratorTraining(tokenizer="runs/tokenizer"),
    )


def ids_of(images: int = IMAGES) -> Any:
    """Ids [images, views, K] that name class and view."""
    labels, views = np.arange(images) % 3, np.arange(VIEWS)
    return (20 * labels[:, None, None] + 5 * views[:, None] + np.arange(K)).astype(np.uint16)


def written(folder: Path, images: int = IMAGES, label: Any = int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "tokens.npy", ids_of(images))
    rows = [{"key": f"{image}", "label": label(image % 3)} for image in range(images)]
    (folder / "tokens.keys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def manifest(folder: Path, **tokenizer: Any) -> Path:
    described = {"name": "titok-l-32", "weights": "b" * 64, "revision": "", "num_tokens": K, "codebook_size": 64}
    file = {"name": "tokens.npy", "bytes": (folder / "tokens.npy").stat().st_size, "sha256": "c" * 64}
    document = {
        "version": 1,
        "tokenizer": described | tokenizer,
        "output": {"format": "npy"},
        "source": {"classes": ["ant", "bee", "cat"]},
        "preprocessing": {"views": VIEWS},
        "shards": [{"images": IMAGES, "files": [file]}],
    }
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def test_all_crops_of_an_image_are_in_one_split(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    classes, (train_set, validation) = open_token_sets(written(tmp_path), run, tokenizer)
    assert classes == {"0": "0", "1": "1", "2": "2"}
    held_out = [*range(10), *range(200, 210), *range(400, 410)]
    kept = [image for image in range(IMAGES) if image not in held_out]
    for tokens, images in ((train_set, kept), (validation, held_out)):
        assert tokens.ids.tolist() == ids_of()[images].tolist()
        assert tokens.labels.tolist() == [image % 3 for image in images]


def test_two_folders_are_the_splits_and_classes_may_be_chosen(
    run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path
) -> None:
    for split, images in (("train", 30), ("val", 6)):
        written(tmp_path / split, images, label=["ant", "bee", "cat"].__getitem__)
    chosen = dataclasses.replace(run.training, classes={"cat": "big cat", "ant": "ant"})
    classes, (train_set, validation) = open_token_sets(tmp_path, dataclasses.replace(run, training=chosen), tokenizer)
    assert list(classes) == ["cat", "ant"]
    assert (train_set.ids.shape, validation.ids.shape) == ((20, VIEWS, K), (4, VIEWS, K))
    assert validation.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match="names fox, which is not among the classes"):
        open_token_sets(
            tmp_path, dataclasses.replace(run, training=dataclasses.replace(chosen, classes={"fox": "fox"})), tokenizer
        )


def test_crops_without_keys_are_images(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    rows = [{"class_id": image % 3, "tokens": view} for image, views in enumerate(ids_of().tolist()) for view in views]
    (tmp_path / "pretokenized.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, (train_set, validation) = open_token_sets(tmp_path, run, tokenizer)
    crops = ids_of().reshape(-1, 1, K)
    is_held_out = np.arange(len(crops)) % 200 < 10
    assert train_set.ids.tolist() == crops[~is_held_out].tolist()
    assert validation.ids.tolist() == crops[is_held_out].tolist()


def test_tokens_of_another_tokenizer_are_refused_with_both_names(
    run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"made with titok-l-32 \(b{12}\), not with runs/tokenizer \(a{12}\)"):
        open_token_sets(manifest(written(tmp_path)), run, tokenizer)


def test_a_changed_file_is_refused(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokens.npy has changed: its SHA-256 is not that of manifest.json"):
        open_token_sets(manifest(written(tmp_path), weights=tokenizer.digest), run, tokenizer)


def test_images_without_labels_have_one_class(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    classes, (train_set, _) = open_token_sets(written(tmp_path, label={}.get), run, tokenizer)
    assert (classes, train_set.labels.unique().tolist()) == ({"all": "all"}, [0])


@pytest.mark.parametrize(
    ("label", "message"),
    [(lambda label: label or None, "0 in .* has no label"), (lambda label: -1 if label else 0, "1 in .* has no label")],
)
def test_a_missing_label_is_named(
    label: Any, message: str, run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        open_token_sets(written(tmp_path, label=label), run, tokenizer)


def test_ids_outside_of_the_codebook_and_other_lengths_are_refused(
    run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.full((20, K), 64))
    with pytest.raises(DataError, match="token id 64 is not in 0 to 63"):
        open_token_sets(tmp_path, run, tokenizer)
    np.save(tmp_path / "a.npy", np.zeros((20, 5), np.uint16))
    with pytest.raises(DataError, match=r"not \[crops, 4\]"):
        open_token_sets(tmp_path, run, tokenizer)


def test_a_set_without_training_images_says_so(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens of the classes are left for train"):
        open_token_sets(written(tmp_path, 9), run, tokenizer)


def test_a_generator_learns_the_crops_of_its_class(
    run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path
) -> None:
    classes, (train_set, validation) = open_token_sets(written(tmp_path), run, tokenizer)
    task = GeneratorTask(run, classes, train_set, validation, tokenizer)
    before = task.evaluate(task.network.eval())["validation_loss"]
    figures = train(task, tmp_path / "run")
    assert figures["validation_loss"] < 0.7 * before
    probabilities = task.network(torch.full((1, K), run.network.mask_token), torch.tensor([1])).softmax(-1)
    assert probabilities[0, 0, [20, 25, 30]].min() > 0.1  # the first tokens of the three crops of class 1
