"""Token sets of a generator from folders of tokens (see :mod:`models.data.token_folder`), without photographs.

::

    DIR/train/, DIR/val/   two folders of tokens
    DIR/                   one: of every 200 images, 10 consecutive ones are held out for validation. Crops of one image
                           without keys are consecutive, so that they are held out together
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.arrays import Ids
from models.data.image_folder import FLAT_CLASS
from models.data.sources import SPLITS, Split
from models.data.token_folder import TokenizerIdentity, open_tokens
from models.data.token_shards import TokenShape
from models.data.tokens import TokenDataset
from models.errors import DataError
from models.training.config import GeneratorRun
from models.training.generator import TokenSet, generator_classes
from models.training.pretrained import FrozenTokenizer

_HELD_OUT, _OUT_OF = 10, 200
_ROWS_PER_COPY = 1 << 16


def open_token_sets(
    folder: Path, run: GeneratorRun, tokenizer: FrozenTokenizer
) -> tuple[dict[str, str], tuple[TokenSet, TokenSet]]:
    """The classes (see :func:`generator_classes`), and the token sets of training and validation with all crops.

    Integer labels without names in the manifest have their digits as names; if no image has a label, all are of one class.

    Raises ``DataError``: another tokenizer, a file that does not match the manifest, missing labels, an empty split.
    """
    is_split = all((folder / split).is_dir() for split in SPLITS)
    found = {path: _open(path, run, tokenizer) for path in ([folder / s for s in SPLITS] if is_split else [folder])}
    names = _class_names(next(iter(found.values())), run)
    classes = generator_classes(run, names)
    numbers = np.full(len(names), -1)
    numbers[[names.index(name) for name in classes]] = np.arange(len(classes))

    def token_set(split: Split) -> TokenSet:
        dataset = found[folder / split if is_split else folder]
        labels = numbers[_label_numbers(dataset, names)]
        images = np.flatnonzero((labels >= 0) & (is_split or _in_split(len(labels), split)))
        if not len(images):
            raise DataError(f"no tokens of the classes are left for {split} in {dataset.folder.path}")
        return _token_set(dataset, images, labels)

    return classes, (token_set("train"), token_set("val"))


def _open(path: Path, run: GeneratorRun, tokenizer: FrozenTokenizer) -> TokenDataset:
    config = tokenizer.network.config
    folder = open_tokens(path, shape=TokenShape(config.num_latent_tokens, None, config.codebook_size))
    folder.check_tokenizer(TokenizerIdentity(run.training.tokenizer, tokenizer.digest, ""))
    folder.verify()
    dataset = TokenDataset(folder)
    if dataset.num_tokens != config.num_latent_tokens:
        raise DataError(f"{path} has crops of {dataset.num_tokens} tokens, not {config.num_latent_tokens}")
    return dataset


def _class_names(dataset: TokenDataset, run: GeneratorRun) -> tuple[str, ...]:
    if dataset.labels.dtype != np.int64:
        return tuple(sorted({str(label) for label in dataset.labels} - {""}))
    if (dataset.labels == -1).all():
        return (FLAT_CLASS,)
    count = max(run.network.condition_num_classes, int(dataset.labels.max()) + 1)
    return dataset.folder.classes or tuple(map(str, range(count)))


def _label_numbers(dataset: TokenDataset, names: tuple[str, ...]) -> Ids:
    """The label of each image as an index into ``names``."""
    labels = dataset.labels
    if names == (FLAT_CLASS,) and (labels == -1).all():
        return np.zeros_like(labels)
    if labels.dtype != np.int64:
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers.get(str(label), -1) for label in labels])
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= len(names)))):
        key, label = dataset.keys[wrong[0]], dataset.labels[wrong[0]]
        raise DataError(
            f"{key} in {dataset.folder.path} has "
            + (f"an unknown label, {label}" if label not in (-1, "") else "no label")
        )
    return labels


def _in_split(images: int, split: Split) -> NDArray[np.bool_]:
    held_out: NDArray[np.bool_] = np.arange(images) % _OUT_OF < _HELD_OUT
    return held_out if split == "val" else ~held_out


def _token_set(dataset: TokenDataset, images: Ids, labels: Ids) -> TokenSet:
    """The crops of ``images``, int32 [N, V, K] if all have V; otherwise each crop is an image of its own, [N, 1, K]."""
    is_wanted = np.zeros(len(labels), np.bool_)
    is_wanted[images] = True
    rows = np.flatnonzero(is_wanted[dataset.images])
    ids = torch.empty(len(rows), dataset.num_tokens, dtype=torch.int32)
    for start in range(0, len(rows), _ROWS_PER_COPY):
        part = slice(start, start + _ROWS_PER_COPY)
        ids[part] = torch.from_numpy(dataset.ids(rows[part]))
    views = np.bincount(dataset.images[rows])[images]
    if len(set(views.tolist())) > 1:
        return TokenSet(ids[:, None], torch.from_numpy(labels[dataset.images[rows]]))
    return TokenSet(ids.view(len(images), -1, dataset.num_tokens), torch.from_numpy(labels[images]))
