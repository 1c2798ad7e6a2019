"""Configuration of a training run: frozen dataclasses, read from a TOML or YAML file; unknown keys are errors."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from models.checkpoints.configuration import with_sizes
from models.errors import ConfigError
from models.networks.generator import GeneratorConfig
from models.networks.titok import TiTokConfig

T = TypeVar("T", bound="TrainingRun")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length of the run and learning-rate schedule: linear warm-up, then a cosine down to ``final_lr`` times the peak. The
    discriminator's begins at its first step.

    ``--max-minutes`` can end a run before ``steps``. ``batch_size`` is that of all devices together; it is computed in
    ``micro_batches`` parts whose gradients are added, which takes less memory.
    """

    steps: int
    batch_size: int
    micro_batches: int = 1
    warmup_steps: int
    final_lr: float = 0.02
    ema_decay: float = 0.999
    evaluate_every: int = 250
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates and number format; weights are always float32.

    With ``muon_lr`` the matrices of the blocks are trained by Muon and the rest by AdamW without weight decay. Otherwise
    AdamW trains everything, with weight decay on the same tensors as the published recipe. Matrix products run in
    ``precision``; ``auto`` is bfloat16 if the processor has instructions for it. ``recompute_activations`` computes the
    activations inside blocks again in the backward pass instead of keeping them: less memory, about a third more time.
    """

    adamw_lr: float
    muon_lr: float | None = None
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute_activations: bool = False


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses. ``adversarial_start`` is a step.

    ``perceptual`` names the network whose features are compared: ``lite0`` (a package), ``convnext-small`` (logits, the
    published second stage) or ``lpips+convnext-small`` (the published one-stage recipe). ``semantic_weight`` weighs the
    cosine distance between Lite0's pooled features, which ignores positions.
    """

    l2_weight: float = 1.0
    l1_weight: float = 0.0
    perceptual: Literal["lite0", "convnext-small", "lpips+convnext-small"] = "lite0"
    perceptual_weight: float = 0.0
    semantic_weight: float = 0.0
    grid_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    lecam_weight: float = 0.001
    quantizer_weight: float = 1.0
    kl_weight: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """``patch`` classifies pixels, as published; ``features`` classifies the features of Lite0."""

    kind: Literal["patch", "features"] = "patch"
    channels: int = 128
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Initialisation of codes.

    For the first ``quantizer_start`` steps latents are not quantized; then codes are initialised from latents (0 keeps
    the network's initialisation). Until the share ``revive_until`` of the run, a code that was not used for
    ``dead_after`` steps is initialised again.
    """

    quantizer_start: int = 150
    dead_after: int = 40
    revive_until: float = 0.85


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """Tail drop: how many tokens of each image the decoder gets (``models.training.tail_drop``).

    Every image of a batch has a length of its own, or all have one. The share ``full_share`` of them keeps all K tokens,
    changing linearly to ``final_full_share`` at the end of the run. The others get one of ``lengths``, which may repeat
    (default: ``network.min_latent_tokens`` to K). Until the share ``curriculum_until`` of the run the shortest length falls
    from K. The perceptual and the semantic loss of an image of L tokens are multiplied by
    ``(L / K) ** perceptual_exponent``: few tokens cannot say where details are, and a decoder that has to draw some takes
    frequent ones of the training data.
    """

    each: Literal["image", "batch"] = "image"
    lengths: tuple[int, ...] = ()
    full_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    final_full_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    curriculum_until: Annotated[float, Field(ge=0, le=1)] = 0.0
    perceptual_exponent: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Augmentation, random flips and shifts by up to ``max_shift`` pixels, and the number of validation images."""

    max_shift: int = 4
    validation_images: int = 512


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """Initial weights: a variant's name, a file, a folder (relative to the working directory), or a hub id.

    ``weights`` initialises a network without a checkpoint (see ``models.training.initialisation``). ``checkpoint`` is a
    tokenizer of the same shape, or a smaller one whose function is kept. ``vqgan`` is the MaskGIT-VQGAN: in stage 1 its
    codes are the targets, in stage 2 its decoder is the pixel decoder.
    """

    weights: Literal["fan-in", "published"] = "fan-in"
    checkpoint: str | None = None
    vqgan: str | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Classes, masking and loss. ``tokenizer`` is a checkpoint folder or a hub id.

    ``classes`` maps class names of the data to the generator's, in the order of its labels; by default the data's
    classes are used. ``initial`` is a generator of the same shape to continue from.
    """

    tokenizer: str
    classes: dict[str, str] = field(default_factory=dict)
    initial: str | None = None
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    visible_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What the configs of tokenizers and generators share."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    schedule: ScheduleConfig
    optimizer: OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(TrainingRun):
    """The config of ``titok train tokenizer``.

    ``one-stage`` trains all of the network on pixels; ``stage-1`` trains it to predict MaskGIT-VQGAN codes;
    ``stage-2`` trains the decoder on pixels, with encoder and codes frozen. With ``prefix`` every prefix of a code decodes.
    """

    network: TiTokConfig
    recipe: Literal["one-stage", "stage-1", "stage-2"] = "one-stage"
    losses: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    data: DataConfig = field(default_factory=DataConfig)
    initial: InitialConfig = field(default_factory=InitialConfig)
    prefix: PrefixConfig | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(TrainingRun):
    """The config of ``titok train generator``."""

    network: GeneratorConfig
    training: GeneratorTraining


def read_config(path: Path, kind: type[T]) -> T:
    """Reads a :class:`TokenizerRun` or :class:`GeneratorRun`. Raises ``ConfigError``, which names the wrong keys."""
    try:
        text = path.read_text(encoding="utf-8")
        table = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("network"), dict):
        raise ConfigError(f"{path}: expected sections such as network and schedule")
    try:
        return TypeAdapter(kind).validate_python({**table, "network": with_sizes(table["network"])})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(
            f"{path}: {'; '.join(problems)}".replace("Unexpected keyword argument", "unknown key")
        ) from None
