"""Every network in its published width on a device that is not the host, without computing anything.

PyTorch's fake tensors have shapes, dtypes and devices, and no data. An operator on tensors of two devices raises, and so
does a value that Python reads from the device. The device is ``meta``, since a build for CPUs cannot run a backward pass
on fake CUDA tensors. Of equal blocks there are two. What depends on the type of the device runs in ``tests/fake_cuda``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import Generator, Tokenizer
from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from models.checkpoints.configuration import generator_config, tokenizer_config
from models.checkpoints.registry import GENERATORS, TOKENIZERS
from models.data.datasets import InMemoryDataset
from models.evaluation.features import extract_features
from models.evaluation.inception import FEATURES, FeatureNetwork, Inception
from models.evaluation.lite0 import Lite0
from models.networks.generator import build_generator
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.titok import TiTok, TiTokConfig
from models.runtime.cuda_graphs import GraphedFunction
from models.sampling.steps import StepParameters
from models.training import generator, pixels, proxy, reconstruction_loss, run
from models.training.config import GeneratorRun, TokenizerRun, read_config
from models.training.generator import GeneratorTask, TokenSet
from models.training.pretrained import FrozenTokenizer
from models.training.published_perceptual import logit_distance
from models.training.seeding import seeded_generator
from models.training.task import Step, Task
from models.training.tokenizer import TokenizerTask

BUNDLED_CONFIGS = [
    json.loads((BUNDLED_WEIGHTS / name / "config.json").read_text())
    for name in (DEFAULT_VARIANT, f"{DEFAULT_VARIANT}-generator")
]
CONFIGS = Path(run.__file__).with_name("configs")
# Every recipe, loss and kind of network.
RECIPES = (
    "titok-mini-32",
    "titok-mini-32-decoder",
    "titok-mini-32-prefix",
    "titok-mini-32-prefix-joint",
    "titok-mini-32-generator",
    "titok-s-128-stage-1",
    "titok-s-128-stage-2",
    "titok-s-128-generator",
    "titok-bl-64-vq8k",
    "titok-bl-64-vae",
)
DEVICE = torch.device("meta")
COUNT = 2


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes new tensors fake ones, and networks that start from files new ones."""
    monkeypatch.setattr(nn.Module, "_apply", replace_tensors)
    for module in (pixels, proxy):
        monkeypatch.setattr(module, "build_tokenizer", lambda run: TiTok(run.network))
    monkeypatch.setattr(generator, "initialise_as_published", lambda _: None)
    monkeypatch.setattr(reconstruction_loss, "_shift_both", lambda outputs, images, _: (outputs, images))
    monkeypatch.setattr(generator, "batch_rows", lambda *_: np.zeros(COUNT, np.int64))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know this device
    monkeypatch.setattr(pixels, "load_vqgan", lambda _: MaskGITVQGAN(MaskGITVQGANConfig()))
    monkeypatch.setattr(reconstruction_loss, "load_lite0", lambda device: Lite0().requires_grad_(False).to(device))
    monkeypatch.setattr(
        reconstruction_loss,
        "load_published_perceptual",
        lambda _, device: lambda *images: logit_distance(nn.Conv2d(3, 8, 16).to(device), *images),
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def shallow(config: TiTokConfig) -> TiTokConfig:
    """With two of the equal blocks."""
    sizes = {half: replace(getattr(config, half), layers=2) for half in ("encoder", "decoder")}
    return replace(config, **sizes)


def replace_tensors(module: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """As ``nn.Module._apply``, which fails at weak references to fake tensors."""
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            each._parameters[name] = nn.Parameter(function(parameter), parameter.requires_grad)
        for name, buffer in each.named_buffers(recurse=False):
            each._buffers[name] = function(buffer)
    return module


def outputs(function: GraphedFunction, inputs: Tensor) -> set[tuple[torch.dtype, torch.Size]]:
    """Dtypes and shapes of the results of all variants, which are on the device."""
    results = [each for static in function._variants(len(inputs)) for each in function(inputs, *static)]
    assert {result.device for result in results} == {DEVICE}
    return {(result.dtype, result.shape) for result in results}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_both_halves_of_every_tokenizer_run_on_the_device(name: str, fake: None) -> None:
    config = TOKENIZERS[name].config or tokenizer_config(BUNDLED_CONFIGS[0])
    network = MaskGITVQGAN(config) if isinstance(config, MaskGITVQGANConfig) else TiTok(shallow(config))
    tokenizer = Tokenizer(network, name=name, digest="0" * 64, source="test", device=DEVICE, dtype="bfloat16")
    size = tokenizer.image_size
    images = torch.zeros(COUNT, size, size, 3, dtype=torch.uint8, device=DEVICE)
    tokens = torch.zeros(COUNT, tokenizer.num_tokens, dtype=torch.int64, device=DEVICE)
    if tokenizer.is_discrete:
        assert outputs(tokenizer.encoder, images) == {(torch.int64, tokens.shape), (torch.float32, tokens.shape)}
    else:
        tokens = tokenizer._functions.latents(images)
        assert (tokens.dtype, tokens.device) == (torch.float32, DEVICE)
    assert outputs(tokenizer.decoder, tokens) == {(torch.uint8, images.shape)}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_step_of_every_generator_runs_on_the_device(name: str, fake: None) -> None:
    config = GENERATORS[name].config or generator_config(BUNDLED_CONFIGS[1], model_type="UViT")
    made = Generator(
        build_generator(replace(config, num_hidden_layers=2)),
        variant=GENERATORS[name],
        names=[],
        digest="0" * 64,
        source="test",
        device=DEVICE,
        dtype="bfloat16",
    )
    width = made.num_tokens + len(StepParameters._fields)
    tokens = torch.Size([COUNT, made.num_tokens])
    assert outputs(made.stepper, torch.zeros(COUNT, width, dtype=torch.int64, device=DEVICE)) == {
        (torch.int64, tokens),
        (torch.float32, tokens[:1]),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_of_every_recipe_have_gradients_on_the_device(name: str, fake: None) -> None:
    trained = generator_task(name) if name.endswith("generator") else tokenizer_task(name)
    losses = trained.losses(Step(10**6, 0.9, seeded_generator(0, 1)))
    assert {loss.device for loss in losses.values()} == {DEVICE}
    losses["loss"].backward()
    gradients = [each.grad for each in trained.network.parameters() if each.grad is not None]
    assert {gradient.device for gradient in gradients} == {DEVICE}


def tokenizer_task(name: str) -> Task[TiTok]:
    training = read_config(CONFIGS / f"{name}.toml", TokenizerRun)
    schedule = replace(training.schedule, batch_size=COUNT)
    training = replace(training, network=shallow(training.network), schedule=schedule)
    size = training.network.image_size
    photographs = InMemoryDataset(np.zeros((COUNT, size, size, 3), np.uint8), np.zeros(COUNT, np.int64))
    trained: TokenizerTask
    if training.recipe == "stage-1":
        vqgan = MaskGITVQGAN(MaskGITVQGANConfig())
        trained = proxy.ProxyCodeTask(training, photographs, photographs, vqgan, DEVICE)
    else:
        trained = pixels.PixelTask(training, photographs, photographs, DEVICE)
    trained.batch = lambda _: torch.zeros(COUNT, 3, size, size, device=DEVICE)  # type: ignore[method-assign]
    return trained


def generator_task(name: str) -> GeneratorTask:
    training = read_config(CONFIGS / f"{name}.toml", GeneratorRun)
    training = replace(
        training,
        network=replace(training.network, num_hidden_layers=2),
        schedule=replace(training.schedule, batch_size=COUNT),
        training=replace(training.training, initial=None),
    )
    network = training.network
    tokens = TokenSet(
        torch.zeros(COUNT, 2, network.image_seq_len, dtype=torch.int64), torch.zeros(COUNT, dtype=torch.int64)
    )
    config = TOKENIZERS[name.removesuffix("-generator")].config or tokenizer_config(BUNDLED_CONFIGS[0])
    assert isinstance(config, TiTokConfig)
    classes = {str(number): str(number) for number in range(network.condition_num_classes)}
    return GeneratorTask(training, classes, tokens, tokens, FrozenTokenizer(TiTok(shallow(config)), ""), DEVICE)


def test_the_evaluation_network_runs_on_the_device(fake: None) -> None:
    features = extract_features(Lite0().to(DEVICE), torch.zeros(COUNT, 3, 128, 128))
    assert {block.device for block in features.blocks} == {DEVICE}
    assert features.pooled.device.type == "cpu"


def test_the_inception_network_runs_on_the_device(fake: None) -> None:
    network = FeatureNetwork(Inception().eval().to(DEVICE), None, DEVICE)
    features = network(torch.zeros(COUNT, 3, 256, 256, dtype=torch.uint8))
    assert (features.device.type, features.shape) == ("cpu", (COUNT, FEATURES))
