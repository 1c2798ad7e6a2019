"""Names of the 1,000 ImageNet classes, by id: the lemmas of their WordNet 3.0 synsets, separated by commas."""

from pathlib import Path

IMAGENET_CLASSES: tuple[str, ...] = tuple(
    Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
)
