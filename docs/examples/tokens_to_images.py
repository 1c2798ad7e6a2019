"""Photographs -> tokens -> a model trained on them -> its images -> their distance from the photographs.

    python docs/examples/tokens_to_images.py photographs out --minutes 3

The models are the GPT of gpt.py and a generator of this project. Photographs are in class folders, over ten of them. Needs a
checkout with the extras bulk, train and evaluate. The distance is Fréchet's, on features of EfficientNet-Lite0 unless
``--inception-weights`` gives those of the published FID. That of the decoded tokens of the photographs comes first: a model
of the tokens can hardly reach less.
"""

import argparse
import re
import subprocess
import warnings
from pathlib import Path

import gpt
import torch
from torch import Tensor, nn

from models.evaluation.lite0 import load_lite0

CONFIG = Path(__file__).parents[2] / "models/training/configs/titok-mini-32-generator.toml"
SIZE, CENTRE = 128, 4  # of the images of titok-mini-32; the centre among the ten crops


def titok(*arguments: object) -> None:
    """Runs a command of titok."""
    subprocess.run(["titok", *map(str, arguments)], check=True)


def write_features(path: Path) -> Path:
    """Writes the network of features, images uint8 [B, 3, S, S] -> float32 [B, 1280], as TorchScript."""
    network = load_lite0()

    class Features(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return network.embed(images / 255)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and records paddings for this size
        torch.jit.trace(Features(), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).save(path)
    return path


def write_config(path: Path, **settings: object) -> Path:
    """Writes the config of the shipped generator without its weights and classes, and with other ``settings``."""
    text = CONFIG.read_text().partition("[training.classes]")[0]
    text = re.sub(r"^(#|initial = ).*\n", "", text, flags=re.MULTILINE)
    for name, value in ({"tokenizer": '"titok-mini-32"'} | settings).items():
        text = re.sub(rf"^{name} = .*", f"{name} = {value}", text, flags=re.MULTILINE)
    path.write_text(text)
    return path


def run(photographs: Path, out: Path, *, minutes: float, per_class: int, width: int, features: Path | None) -> None:
    """Runs all commands. Writes to the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    classes = sum(folder.is_dir() for folder in photographs.iterdir())
    batch_size = min(128, sum(1 for _ in photographs.glob("*/*")) // 2)
    network = features or write_features(out / "lite0.pt")

    def measure(images: Path) -> None:
        titok("fid", images, photographs, "--inception-weights", network, "--size", SIZE, "--cache", out / "cache")

    titok("tokenize", photographs, out / "tokens", "--crops", "ten")
    titok("detokenize", out / "tokens", out / "photographs", "--view", CENTRE)
    measure(out / "photographs")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    count = per_class * classes
    gpt.run(out / "tokens", out / "samples", minutes=minutes, count=count, width=width, layers=4, device=device)
    titok("detokenize", out / "samples", out / "of-gpt")
    measure(out / "of-gpt")

    sizes = {"condition_num_classes": classes, "hidden_size": width, "batch_size": batch_size}
    config, trained = write_config(out / "generator.toml", **sizes), out / "generator"
    titok("train", "generator", config, "--tokens", out / "tokens", "--output", trained, "--max-minutes", minutes)
    weights = trained / "checkpoint"
    titok("sample", out / "of-generator", "--per-class", per_class, "--generator-weights", weights, "--tokens", "none")
    measure(out / "of-generator")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of class folders")
    parser.add_argument("out", type=Path, help="a new folder for all that is written")
    parser.add_argument("--minutes", type=float, default=3, help="time of training of each model")
    parser.add_argument("--per-class", type=int, default=50, help="images of each class")
    parser.add_argument("--width", type=int, default=128, help="width of both models, a multiple of 64")
    parser.add_argument("--inception-weights", dest="features", type=Path, help="network of the features")
    run(**vars(parser.parse_args()))
