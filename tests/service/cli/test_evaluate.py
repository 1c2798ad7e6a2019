"""``titok evaluate`` from shards to figures, with the shipped tokenizer."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from models.checkpoints.configuration import generator_config
from models.errors import CheckpointError, DataError, missing_package
from models.networks.generator import build_generator
from service.cli.main import app
from service.cli.options import CommandError
from tests.fake_cuda import FakeCuda
from tests.feature_networks import write_torchscript
from tests.in_process import run_in_process

CLASSES = ("pets/cat", "sea/clams", "sea/fish")


def write_shard(path: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    with tarfile.open(path, "w:gz") as shard:
        for index in range(count):
            coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((128, 128)).save(file := io.BytesIO(), "webp")
            for suffix, content in (("webp", file.getvalue()), ("cls", str(index % 3).encode())):
                info = tarfile.TarInfo(f"{index:06d}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "classes.json").write_text(json.dumps(dict(enumerate(CLASSES))))
    write_shard(folder / "train-0000.tar.gz", 12, 0)
    write_shard(folder / "val-0000.tar.gz", 9, 1)
    return folder


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a small generator of the shipped tokenizer's codes: ``sources`` says what its classes were."""
    shape = {
        "model_type": "UViT",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_seq_len": 32,
        "condition_num_classes": 2,
        "classes": ["cat", "clam"],
    }
    folder = tmp_path_factory.mktemp("generators")
    for name, more in (("sources", {"sources": ["pets/cat", "sea/clams"]}), ("names", {})):
        config: dict[str, Any] = {"model": {"vq_model": {"codebook_size": 4096}, "generator": shape | more}}
        torch.manual_seed(0)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(build_generator(generator_config(config)).state_dict(), folder / name / "model.safetensors")
    return folder


@pytest.fixture
def folders(data: Path, tmp_path: Path) -> list[str | Path]:
    return ["--data", data, "--output", tmp_path / "output", "--cache", tmp_path / "cache", "--images", "4"]


def run(*arguments: str | Path) -> None:
    """Runs the command; errors are raised."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def figures(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "output" / "figures.json").read_text())
    return document


def test_it_writes_a_report_and_images_of_tokenizer_and_generator(
    folders: list[str | Path], generators: Path, tmp_path: Path
) -> None:
    mine = ("--tokenizer", "mine", "--weights", BUNDLED_WEIGHTS / DEFAULT_VARIANT)
    run(*folders, *mine, "--generator-weights", generators / "sources", "--per-class", "3", "--preset", "fast", "--npz")
    assert {path.name for path in (tmp_path / "output").iterdir()} == {
        *("figures.json", "figures.md", "reconstruction.png", "generated.png", "nearest.png"),
        *("originals.npz", "reconstructions.npz", "generated.npz"),
    }
    found = figures(tmp_path)
    assert found["data"] == {"image_size": 128, "validation_photographs": 4, "training_photographs": 12}
    tokenizer = found["reconstruction"]["codecs"][0]
    assert (tokenizer["name"], tokenizer["max_bytes"]) == ("mine", 48)
    assert tokenizer["psnr"] > 15
    assert (found["generation"]["images"], found["generation"]["real_images"]) == (6, 6)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_torchscript(tmp_path_factory.mktemp("inception") / "detector.pt")


def test_the_published_protocol_compares_with_training_images_or_a_reference(
    folders: list[str | Path], generators: Path, inception: Path, tmp_path: Path
) -> None:
    options = ["--generator-weights", generators / "sources", "--per-class", "2", "--preset", "fast"]
    options += ["--inception-weights", inception]
    run(*folders, *options, "--no-baselines")
    against_training = figures(tmp_path)["published"]
    assert [codec["name"] for codec in figures(tmp_path)["reconstruction"]["codecs"]] == ["titok-mini-32"]
    assert against_training["reconstruction"]["images"] == against_training["reconstruction"]["references"] == 4
    assert (against_training["generation"]["images"], against_training["generation"]["references"]) == (4, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", pixels)
    run(*folders, *options, "--no-baselines", "--reference", tmp_path / "reference.npz")
    assert figures(tmp_path)["published"]["reconstruction"] == against_training["reconstruction"]
    assert figures(tmp_path)["published"]["generation"]["references"] == 5


def test_a_generator_is_evaluated_against_a_reference_without_data(
    generators: Path, inception: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "reference.npz", np.zeros((5, 128, 128, 3), np.uint8))
    run(
        *("--output", tmp_path / "output", "--cache", tmp_path / "cache", "--per-class", "2", "--preset", "fast"),
        *("--generator-weights", generators / "sources", "--inception-weights", inception),
        *("--reference", tmp_path / "reference.npz", "--npz"),
    )
    found = figures(tmp_path)
    assert (found["reconstruction"], found["generation"]) == (None, None)
    assert (found["published"]["generation"]["images"], found["published"]["generation"]["references"]) == (4, 5)
    with np.load(tmp_path / "output" / "generated.npz") as archive:
        assert archive["arr_0"].shape == (4, 128, 128, 3)
    assert {path.name for path in (tmp_path / "output").iterdir()} == {
        *("figures.json", "figures.md", "generated.png", "generated.npz")
    }


def test_another_reference_is_refused_before_anything_is_computed(
    folders: list[str | Path], inception: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(DataError, match="expected float"):
        run(*folders, "--inception-weights", inception, "--reference", tmp_path / "reference.npz")
    assert not list((tmp_path / "cache").iterdir())


def test_neither_data_nor_a_reference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate: give --data, or for a generator alone --reference"):
        run("--output", tmp_path)


def test_validation_images_alone_suffice_for_reconstruction(data: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val-0000.tar.gz").symlink_to(data / "val-0000.tar.gz")
    run("--data", tmp_path / "val", "--output", tmp_path / "output", "--cache", tmp_path / "cache", "--images", "4")
    found = figures(tmp_path)
    assert found["data"] == {"image_size": 128, "validation_photographs": 4, "training_photographs": 0}
    assert (found["generation"], found["reconstruction"]["classes"]) == (None, 0)
    assert found["reconstruction"]["codecs"][0]["class_agreement"] is None
    assert not any(codec["name"].startswith("PCA") for codec in found["reconstruction"]["codecs"])


def test_a_tokenizer_is_evaluated_without_its_generator(folders: list[str | Path], tmp_path: Path) -> None:
    run(*folders, "--references", "4", "--no-generator")
    assert figures(tmp_path)["generation"] is None
    assert figures(tmp_path)["data"]["training_photographs"] == 4


def test_all_networks_run_on_a_cuda_device(folders: list[str | Path], generators: Path, tmp_path: Path) -> None:
    small = ("--references", "4", "--per-class", "2", "--preset", "fast", "--no-baselines")
    with nullcontext() if torch.cuda.is_available() else FakeCuda():
        run(*folders, *small, "--generator-weights", generators / "sources", "--device", "cuda")
    found = figures(tmp_path)
    assert found["reconstruction"]["codecs"][0]["psnr"] > 15
    assert found["generation"]["images"] == 4


def test_a_config_maps_the_classes_of_the_dataset(folders: list[str | Path], generators: Path, tmp_path: Path) -> None:
    (path := tmp_path / "classes.toml").write_text(
        '[training.classes]\n"sea/clams" = "clam"\n"pets/cat" = "cat"\n"sea/fish" = "fish"\n'
    )
    run(*folders, "--generator-weights", generators / "names", "--classes", path, "--per-class", "2")
    assert figures(tmp_path)["generation"]["classes"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the generator's class 'clam' is none of the data's classes; --classes CONFIG.toml names"),
        ("[training]\n", r"classes\.toml has no table \[training\.classes\]"),
        ("[training", r"cannot read .*classes\.toml"),
        ('[training.classes]\n"pets/cat" = "cat"\n"sea/clam" = "clam"\n', "'clam' is none of the data's classes"),
    ],
    ids=["no configuration", "no table", "no TOML", "another name"],
)
def test_unmatched_classes_are_named(
    folders: list[str | Path], generators: Path, tmp_path: Path, text: str | None, message: str
) -> None:
    options: list[str | Path] = ["--generator-weights", generators / "names"]
    if text is not None:
        (path := tmp_path / "classes.toml").write_text(text)
        options += ["--classes", path]
    with pytest.raises((CommandError, ValueError), match=message):
        run(*folders, *options)
    assert not list((tmp_path / "cache").glob("lite0-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "best"], "published, demo, fast"),
        (["--tokenizer", "titok-x"], "no tokenizer is called 'titok-x'"),
        (["--output", f"{__file__}/output"], "cannot make the folder .*output: Not a directory"),
        (["--inception-weights", "nowhere.pth"], r"no Inception weights at nowhere\.pth"),
        (["--reference", "nowhere.npz"], "--reference is compared by Inception features"),
    ],
)
def test_wrong_options_raise_before_the_evaluation_starts(
    folders: list[str | Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises((CommandError, CheckpointError, ImportError, ValueError, LookupError), match=message):
        run(*folders, *arguments)
    assert not list((tmp_path / "cache").glob("lite0-*"))


@pytest.mark.parametrize(
    ("package", "extra"), [("filelock", "train"), ("fast_blurhash", "evaluate"), ("thash", "evaluate")]
)
def test_a_missing_package_is_named_with_its_extra(
    folders: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(("models.data", "models.evaluation"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError) as raised:
        run(*folders, "--no-generator")
    message = missing_package(raised.value) or ""
    assert message.startswith(f"the package {package} is not installed (extra {extra!r})")
    assert message.endswith("run: make install")
    assert not list((tmp_path / "cache").glob("*"))


def test_an_empty_dataset_is_reported_without_a_traceback(tmp_path: Path) -> None:
    ended = run_in_process(
        "evaluate", "--data", tmp_path, "--output", tmp_path / "output", "--cache", tmp_path / "cache"
    )
    assert ended.returncode == 1
    assert "titok: no images in" in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()
