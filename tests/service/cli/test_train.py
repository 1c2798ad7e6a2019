"""``titok train``, as real processes: killed, told to stop, out of disk."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import load_generator, load_tokenizer
from tests.benchmarks import gpu_train
from tests.fake_cuda import FakeCuda
from tests.in_process import run_in_process

TOKENIZER = """
[network]
image_size = 16
num_latent_tokens = 4
codebook_size = 64
token_size = 4
use_l2_norm = true
is_legacy = false
finetune_decoder = false
encoder_patch_size = 8
decoder_patch_size = 8
encoder = { width = 32, layers = 1, heads = 1 }
decoder = { width = 32, layers = 1, heads = 1 }
pixel_head = "conv"
pixel_head_channels = 8

[schedule]
steps = 40
batch_size = 8
warmup_steps = 5
evaluate_every = 10

[optimizer]
muon_lr = 3e-3
adamw_lr = 3e-3
precision = "float32"

[codebook]
quantizer_start = 4
"""

GENERATOR = """
[network]
model_type = "UViT"
image_seq_len = 4
codebook_size = 64
condition_num_classes = 2
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64

[schedule]
steps = 12
batch_size = 8
warmup_steps = 5

[optimizer]
muon_lr = 3e-3
adamw_lr = 3e-3
precision = "float32"

[training]
tokenizer = "{tokenizer}"
classes = {{ "pets/cat" = "cat", "pets/dog" = "dog" }}
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` (two classes, folders of small photographs) and a config."""
    folder = tmp_path_factory.mktemp("train")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for name in ("pets/cat", "pets/dog"):
            (place := folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                coarse = random.integers(0, 256, (2, 1, 3), dtype=np.uint8).repeat(8, axis=0).repeat(16, axis=1)
                Image.fromarray(coarse).save(place / f"{index}.png")
    (folder / "tokenizer.toml").write_text(TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Start]:
    """Starts ``titok train WHAT CONFIG --output OUTPUT ...`` ."""
    running: list[subprocess.Popen[str]] = []

    def begin(what: str, config: str, output: str, *more: str, **options: object) -> "subprocess.Popen[str]":
        places = ["--data", "data", "--cache", "cache", "--output", output, "--threads", "1"]
        process = subprocess.Popen(
            [Path(sys.executable).with_name("titok"), "train", what, config, *places, *more],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "300"},
            **options,  # type: ignore[call-overload]
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]") -> str:
    """Its standard error, after it has succeeded."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


def logged(output: Path) -> dict[int, dict[str, float]]:
    """The losses by step."""
    rows = csv.DictReader((output / "log.csv").read_text().splitlines())
    return {int(row["step"]): {name: float(row[name]) for name in ("loss", "pixels", "gradient_norm")} for row in rows}


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(start: Start, folder: Path) -> Path:
    """The output of an uninterrupted run."""
    assert "validation_psnr" in ended(start("tokenizer", "tokenizer.toml", "whole"))
    return folder / "whole"


def test_a_tokenizer_and_then_its_generator_are_trained(start: Start, folder: Path, whole: Path) -> None:
    tokenizer = load_tokenizer("mine", weights=whole / "checkpoint")
    (folder / "generator.toml").write_text(GENERATOR.format(tokenizer=whole / "checkpoint"))
    ended(start("generator", "generator.toml", "generator"))
    generator = load_generator("titok-mini-32", weights=folder / "generator" / "checkpoint")
    assert generator.num_tokens == tokenizer.num_tokens
    assert tokenizer.decode(generator.generate([0, 1], seeds=[1, 2])).shape == (2, 16, 16, 3)


def test_a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one(start: Start, folder: Path, whole: Path) -> None:
    output = folder / "killed"
    while not output.exists():
        process = start("tokenizer", "tokenizer.toml", "killed")
        while process.poll() is None and not (output / "state.pt").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it ended before the signal reached it
            shutil.rmtree(output)
    assert 40 not in logged(output)
    ended(start("tokenizer", "tokenizer.toml", "killed", "--resume"))
    expected, found = logged(whole), logged(output)
    assert list(found) == list(expected) == [10, 20, 30, 40]
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, abs=1e-6)


def test_a_run_stopped_by_a_signal_leaves_a_checkpoint_that_loads(start: Start, folder: Path) -> None:
    (folder / "long.toml").write_text(TOKENIZER.replace("steps = 40", "steps = 100_000"))
    process = start("tokenizer", "long.toml", "stopped")
    wait_for((folder / "stopped" / "state.pt").exists, process)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert load_tokenizer("mine", weights=folder / "stopped" / "checkpoint").num_tokens == 4


def test_a_run_ended_by_the_time_limit_leaves_a_checkpoint_that_loads(start: Start, folder: Path) -> None:
    (folder / "long.toml").write_text(TOKENIZER.replace("steps = 40", "steps = 100_000"))
    ended(start("tokenizer", "long.toml", "timed", "--max-minutes", "0.01"))
    assert load_tokenizer("mine", weights=folder / "timed" / "checkpoint").num_tokens == 4


def test_a_full_disk_keeps_the_previous_state(start: Start, folder: Path, whole: Path) -> None:
    shutil.copytree(whole, folder / "full")
    files = [folder / "full" / "state.pt", folder / "full" / "checkpoint" / "model.safetensors"]
    before = [file.read_bytes() for file in files]
    (folder / "more.toml").write_text(TOKENIZER.replace("steps = 40", "steps = 60"))

    def no_room_for_a_state() -> None:  # writing beyond it fails, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start("tokenizer", "more.toml", "full", "--resume", preexec_fn=no_room_for_a_state)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "the previously saved state is intact" in said
    assert "Traceback" not in said
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 40", "stepps = 40"), "schedule.stepps: unknown key"),
        (("image_size = 16", "image_size = 20"), "image_size 20 is not a multiple of encoder_patch_size 8"),
        (("[schedule]", 'recipe = "stage-3"\n[schedule]'), "recipe"),
    ],
)
def test_a_wrong_config_is_one_line(folder: Path, change: tuple[str, str], message: str) -> None:
    (folder / "wrong.toml").write_text(TOKENIZER.replace(*change))
    ended = run_in_process(
        *("train", "tokenizer", "wrong.toml", "--data", "data", "--output", "wrong"), cwd=folder, COLUMNS="300"
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.decode().strip().splitlines()
    assert line.startswith("titok: ")
    assert message in line
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generator"], "give either --data or --tokens"),
        (["generator", "--data", "data", "--tokens", "tokens"], "give either --data or --tokens"),
        (["tokenizer"], "give --data"),
        (["tokenizer", "--tokens", "tokens"], "a tokenizer is trained on images: give --data instead of --tokens"),
    ],
)
def test_a_generator_has_one_source_and_a_tokenizer_has_images(arguments: list[str], message: str) -> None:
    what, *sources = arguments
    ended = run_in_process("train", what, "titok-mini-32", "--output", "unused", *sources)
    assert ended.returncode == 1
    assert ended.stderr.decode() == f"titok: {message}\n"


def test_make_gpu_train_trains_both_networks_and_resumes(folder: Path, tmp_path: Path) -> None:
    (folder / "generator.toml").write_text(GENERATOR.format(tokenizer="replaced"))
    configs = ["--tokenizer", str(folder / "tokenizer.toml"), "--generator", str(folder / "generator.toml")]
    places = ["--data", str(folder / "data"), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path)]
    steps = []
    with FakeCuda():
        for limit in ("3", "5", "5"):
            figures = gpu_train.main(["--device", "cuda", "--steps", limit, *places, *configs])
            steps.append([figures[part].get("step") for part in ("tokenizer", "generator")])
    assert steps == [[3, 3], [5, 5], [None, None]]
    tokenizer = load_tokenizer("mine", weights=tmp_path / "tokenizer" / "checkpoint")
    generator = load_generator("titok-mini-32", weights=tmp_path / "generator" / "checkpoint")
    assert generator.num_tokens == tokenizer.num_tokens
