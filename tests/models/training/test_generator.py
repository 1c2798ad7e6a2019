import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from models import load_generator
from models.data.datasets import InMemoryDataset
from models.errors import DataError
from models.networks.generator import GeneratorConfig
from models.training.config import (
    ConfigError,
    GeneratorRun,
    GeneratorTraining,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerRun,
)
from models.training.generator import GeneratorTask, TokenSet, generator_classes, tokenize
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.pretrained import FrozenTokenizer, load_frozen_tokenizer

CLASSES = {"pets/dog": "dog", "pets/cat": "cat"}


@pytest.fixture
def tokenizer(tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path) -> FrozenTokenizer:
    task = PixelTask(tokenizer_run, tiny_photographs, tiny_photographs)
    task.export(task.network, tmp_path / "tokenizer")
    return load_frozen_tokenizer(str(tmp_path / "tokenizer"))


@pytest.fixture
def run() -> GeneratorRun:
    return GeneratorRun(
        network=GeneratorConfig(
            model_type="UViT",
            image_seq_len=4,
            codebook_size=64,
            condition_num_classes=2,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        ),
        schedule=ScheduleConfig(steps=100, batch_size=16, warmup_steps=5, evaluate_every=20, ema_decay=0.9),
        optimizer=OptimizerConfig(muon_lr=3e-3, adamw_lr=3e-3, precision="float32"),
        training=GeneratorTraining(tokenizer="unused", classes=CLASSES),
    )


@pytest.fixture
def named(tiny_photographs: InMemoryDataset) -> InMemoryDataset:
    return dataclasses.replace(tiny_photographs, names=("pets/cat", "pets/dog"))


def test_tokens_are_of_the_asked_classes_upright_and_mirrored(
    tokenizer: FrozenTokenizer, named: InMemoryDataset, tmp_path: Path
) -> None:
    dogs = tokenize(named, {"pets/dog": "dog"}, tokenizer, cache=tmp_path)
    assert dogs.ids.shape == (int((named.labels == 1).sum()), 2, 4)
    assert dogs.labels.unique().tolist() == [0]
    image = torch.from_numpy(named.images[named.labels == 1][0]).permute(2, 0, 1)[None] / 255.0
    assert torch.equal(dogs.ids[0, 0], tokenizer.network.encode(image).ids[0])
    assert torch.equal(dogs.ids[0, 1], tokenizer.network.encode(image.flip(3)).ids[0])


def test_tokens_are_made_once_for_a_tokenizer_and_its_photographs(
    tokenizer: FrozenTokenizer, named: InMemoryDataset, tmp_path: Path
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens-*.npy")}

    heard: list[tuple[int, int]] = []
    first = tokenize(named, CLASSES, tokenizer, cache=tmp_path, progress=lambda done, of: heard.append((done, of)))
    assert heard[-1] == (40, 40)
    written = files()
    assert torch.equal(tokenize(named, CLASSES, tokenizer, cache=tmp_path).ids, first.ids)
    assert files() == written
    tokenize(named, CLASSES, FrozenTokenizer(tokenizer.network, "another"), cache=tmp_path)
    tokenize(dataclasses.replace(named, fingerprint="changed"), CLASSES, tokenizer, cache=tmp_path)
    assert len(files()) == 3


def test_without_classes_of_its_own_a_generator_has_those_of_the_data(run: GeneratorRun) -> None:
    assert generator_classes(run, ("pets/cat", "pets/dog")) == CLASSES
    bare = dataclasses.replace(run, training=GeneratorTraining(tokenizer="unused"))
    assert generator_classes(bare, ("cat", "dog")) == {"cat": "cat", "dog": "dog"}


def test_a_class_that_the_data_lacks_is_named(run: GeneratorRun) -> None:
    with pytest.raises(ConfigError, match=r"names pets/cat, which is not among the classes of the data"):
        generator_classes(run, ("pets/dog", "pets/fox"))


@pytest.mark.parametrize("kind", ["UViT", "ViT"])
def test_a_generator_learns_what_its_class_looks_like_and_loads(
    run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path, kind: Literal["UViT", "ViT"]
) -> None:
    run = dataclasses.replace(
        run,
        network=dataclasses.replace(run.network, model_type=kind, dropout=0.0),
        schedule=dataclasses.replace(run.schedule, steps=200, evaluate_every=200),
    )
    labels = torch.arange(64) % 2
    ids = (10 + labels[:, None] * 20 + torch.arange(4))[:, None].expand(-1, 2, -1)
    task = GeneratorTask(run, CLASSES, TokenSet(ids, labels), TokenSet(ids[:8], labels[:8]), tokenizer)
    before = task.evaluate(task.network.eval())["validation_loss"]
    figures = train(task, tmp_path)
    assert figures["validation_loss"] < 0.7 * before
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["model"]["generator"]["classes"] == ["dog", "cat"]
    assert config["model"]["generator"]["sources"] == ["pets/dog", "pets/cat"]
    generator = load_generator("titok-mini-32", weights=tmp_path / "checkpoint")
    assert generator.class_names == ("dog", "cat")
    tokens = generator.generate([0, 1], seeds=[1, 2], temperature=0.0)
    assert tokens.tolist() == [[10, 11, 12, 13], [30, 31, 32, 33]]


def test_dropout_is_the_same_after_a_kill(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    network = dataclasses.replace(run.network, model_type="ViT", dropout=0.5)
    labels = torch.arange(64) % 2
    tokens = TokenSet((labels[:, None] * 20 + torch.arange(4))[:, None].expand(-1, 2, -1), labels)
    losses: list[dict[int, float]] = [{}, {}]
    for steps, heard in ((20, losses[0]), (10, {}), (20, losses[1])):
        output = tmp_path / ("whole" if heard is losses[0] else "resumed")
        schedule = dataclasses.replace(run.schedule, steps=steps, warmup_steps=0, final_lr=1.0, evaluate_every=10)
        task = GeneratorTask(
            dataclasses.replace(run, network=network, schedule=schedule), CLASSES, tokens, tokens, tokenizer
        )
        torch.rand(steps)  # another process is somewhere else in its own random numbers
        train(
            task,
            output,
            resume=True,
            report=lambda step, _, figures, heard=heard: heard.update({step: figures["loss"]}),
        )
    assert list(losses[1]) == list(range(11, 21))
    for step, loss in losses[1].items():
        assert loss == pytest.approx(losses[0][step], abs=1e-6)


def test_a_generator_can_go_on_from_another(run: GeneratorRun, tokenizer: FrozenTokenizer, tmp_path: Path) -> None:
    tokens = TokenSet(torch.zeros(16, 2, 4, dtype=torch.int64), torch.zeros(16, dtype=torch.int64))
    first = GeneratorTask(run, CLASSES, tokens, tokens, tokenizer)
    torch.nn.init.constant_(first.network.lm_head.bias, 0.5)  # type: ignore[arg-type, union-attr]
    first.export(first.network, tmp_path / "first")
    training = dataclasses.replace(run.training, initial=str(tmp_path / "first"))
    second = GeneratorTask(dataclasses.replace(run, training=training), CLASSES, tokens, tokens, tokenizer)
    assert second.network.lm_head.bias.unique().tolist() == [0.5]  # type: ignore[operator, union-attr]


def test_fewer_tokens_than_a_batch_are_refused(run: GeneratorRun, tokenizer: FrozenTokenizer) -> None:
    tokens = TokenSet(torch.zeros(15, 2, 4, dtype=torch.int64), torch.zeros(15, dtype=torch.int64))
    with pytest.raises(
        DataError, match=r"there are 15 training images, fewer than the 16 of a batch: add images, or set"
    ):
        GeneratorTask(run, CLASSES, tokens, tokens, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition_num_classes": 3}, "there are 2 classes, and network.condition_num_classes is 3"),
        ({"image_seq_len": 5}, "must be the tokenizer's"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(
    run: GeneratorRun, tokenizer: FrozenTokenizer, change: dict[str, object], message: str
) -> None:
    tokens = TokenSet(torch.zeros(16, 2, 4, dtype=torch.int64), torch.zeros(16, dtype=torch.int64))
    wrong = dataclasses.replace(run, network=dataclasses.replace(run.network, **change))
    with pytest.raises(ConfigError, match=message):
        GeneratorTask(wrong, CLASSES, tokens, tokens, tokenizer)


def test_codes_that_are_alike_begin_with_embeddings_that_are(run: GeneratorRun, tokenizer: FrozenTokenizer) -> None:
    weight = tokenizer.network.quantize.embedding.weight
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    weight[1] = weight[0] + 0.01
    tokens = TokenSet(torch.zeros(16, 2, 4, dtype=torch.int64), torch.zeros(16, dtype=torch.int64))
    network = GeneratorTask(run, CLASSES, tokens, tokens, tokenizer).network
    for rows in (network.embeddings.weight[:64], network.lm_head.weight):
        assert (rows[0] - rows[1]).norm() < 0.1 * (rows[0] - rows[2]).norm()
