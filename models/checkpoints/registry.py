"""Registry of variants: network configuration, weights, sampling presets and published metrics.

Figures and settings: 1d-tokenizer's README_TiTok.md and sampling scripts (commit 942a96f), and One-D-Piece's README and
configurations (commit 473665d); rFID on the ImageNet validation set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from models.checkpoints.loading import WEIGHT_FILES, HubFile
from models.networks.generator import GeneratorConfig
from models.networks.maskgit_vqgan import MaskGITVQGANConfig
from models.networks.titok import SIZES, TiTokConfig
from models.sampling.settings import SamplingSettings

PRESETS = ("published", "demo", "fast")

IMAGENET_CLASSES: tuple[str, ...] = tuple(
    Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
)
"""Names of the 1,000 ImageNet classes, by id: the lemmas of their WordNet 3.0 synsets, separated by commas."""

# Known commits of the published repositories; the others follow main, since the hub takes no abbreviated commit. A
# tokenizer's ``source`` names the downloaded commit, and its ``revision`` is a digest of the weights.
_COMMITS = {
    "fun-research/TiTok": "ab646ed225080a3acb7c78440a574d7f67f16fa7",
    "yucornetto/tokenizer_titok_l32_imagenet": "1c9a2084c59112fd415b7ed97d4c200e864a95de",
    "yucornetto/tokenizer_titok_b64_imagenet": "603747b9431d1d903ce6f1c55207f3c3bea4c785",
    "yucornetto/tokenizer_titok_s128_imagenet": "aa8740991cc9e5965e6dea04caad8905193fc24b",
    "yucornetto/tokenizer_titok_sl256_vq8k_imagenet": "62674d2620ade2d77c577a81e97af02e93a342ff",
}


@dataclass(frozen=True, kw_only=True)
class TokenizerVariant:
    """A tokenizer. ``config`` None: the ``config.json`` beside the weights applies."""

    name: str
    config: TiTokConfig | MaskGITVQGANConfig | None
    weights: HubFile | Path
    rfid: float | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorVariant:
    """A generator, named after its tokenizer, with its sampling ``presets``."""

    name: str
    config: GeneratorConfig | None
    weights: HubFile | Path
    presets: Mapping[str, SamplingSettings] = field(repr=False)


def _hub(kind: str, name: str) -> HubFile:
    return _at_known_commit(f"yucornetto/{kind}_{name}_imagenet")


def _at_known_commit(repo: str, filename: str = WEIGHT_FILES[0]) -> HubFile:
    return HubFile(repo=repo, filename=filename, revision=_COMMITS.get(repo, "main"))


def _two_stage(size: str, tokens: int, rfid: float) -> TokenizerVariant:
    config = TiTokConfig(num_latent_tokens=tokens, encoder=SIZES[size], decoder=SIZES[size], use_l2_norm=True)
    letter = size[0]
    return TokenizerVariant(
        name=f"titok-{letter}-{tokens}", config=config, weights=_hub("tokenizer", f"titok_{letter}{tokens}"), rfid=rfid
    )


def _one_d_piece(size: str, rfid: float) -> TokenizerVariant:
    """A two-stage network with 256 tokens, each prefix of which decodes. The ``rfid`` is that of all 256."""
    config = TiTokConfig(
        num_latent_tokens=256, min_latent_tokens=1, encoder=SIZES[size], decoder=SIZES[size], use_l2_norm=True
    )
    letter = size[0]
    weights = HubFile(repo=f"turing-motors/One-D-Piece-{letter.upper()}-256", filename="pytorch_model.bin")
    return TokenizerVariant(name=f"onedpiece-{letter}-256", config=config, weights=weights, rfid=rfid)


def _one_stage(sizes: str, tokens: int, rfid: float, *, vae: bool = False) -> TokenizerVariant:
    encoder, decoder = (SIZES[{"s": "small", "b": "base", "l": "large"}[letter]] for letter in sizes)
    config = TiTokConfig(
        num_latent_tokens=tokens,
        encoder=encoder,
        decoder=decoder,
        quantize_mode="vae" if vae else "vq",
        codebook_size=8192,
        token_size=16 if vae else 64,
        is_legacy=False,
        finetune_decoder=False,
    )
    suffix, published = ("vae", "vae_c16") if vae else ("vq8k", "vq8k")
    return TokenizerVariant(
        name=f"titok-{sizes}-{tokens}-{suffix}",
        config=config,
        weights=_hub("tokenizer", f"titok_{sizes}{tokens}_{published}"),
        rfid=rfid,
    )


TOKENIZERS: Mapping[str, TokenizerVariant] = {
    variant.name: variant
    for variant in (
        TokenizerVariant(name=DEFAULT_VARIANT, config=None, weights=BUNDLED_WEIGHTS / DEFAULT_VARIANT),
        _two_stage("large", 32, 2.21),
        _two_stage("base", 64, 1.70),
        _two_stage("small", 128, 1.71),
        _one_d_piece("small", 1.48),
        _one_d_piece("base", 1.11),
        _one_d_piece("large", 1.08),
        _one_stage("bl", 64, 2.06),
        _one_stage("bl", 128, 1.49),
        _one_stage("sl", 256, 1.03),
        _one_stage("ll", 32, 1.61, vae=True),
        _one_stage("bl", 64, 1.25, vae=True),
        _one_stage("bl", 128, 0.84, vae=True),
        TokenizerVariant(
            name="maskgit-vqgan-f16",
            config=MaskGITVQGANConfig(),
            weights=_at_known_commit("fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin"),
            rfid=2.28,
        ),
    )
}

# Settings of the quick start: low temperature, better looking and less varied images.
_DEMO = SamplingSettings(steps=8, guidance_scale=4.5, guidance_decay="constant", temperature=1.0)

# Compared in docs/training/titok-mini-32.md: ``published`` for variety; ``demo`` has more guidance, for objects that can be
# recognised.
_MINI = SamplingSettings(steps=8, guidance_scale=7.0, guidance_decay="linear", temperature=8.0, token_temperature=1.0)


def _presets(
    published: SamplingSettings, *, demo: SamplingSettings = _DEMO, fast_steps: int
) -> dict[str, SamplingSettings]:
    return {"published": published, "demo": demo, "fast": replace(published, steps=fast_steps)}


def _generator(name: str, config: GeneratorConfig, settings: SamplingSettings, *, fast_steps: int) -> GeneratorVariant:
    """A published generator; all of them were evaluated with ``softmax_annealing``."""
    _, letter, tokens = name.split("-")
    presets = _presets(replace(settings, softmax_annealing=True), fast_steps=fast_steps)
    return GeneratorVariant(
        name=name, config=config, weights=_hub("generator", f"titok_{letter}{tokens}"), presets=presets
    )


GENERATORS: Mapping[str, GeneratorVariant] = {
    variant.name: variant
    for variant in (
        GeneratorVariant(
            name=DEFAULT_VARIANT,
            config=None,
            weights=BUNDLED_WEIGHTS / f"{DEFAULT_VARIANT}-generator",
            presets=_presets(_MINI, demo=replace(_MINI, guidance_scale=9.0), fast_steps=4),
        ),
        _generator(
            "titok-l-32",
            GeneratorConfig(model_type="ViT", image_seq_len=32),
            SamplingSettings(steps=8, guidance_scale=4.5, guidance_decay="linear", temperature=9.5),
            fast_steps=4,
        ),
        _generator(
            "titok-b-64",
            GeneratorConfig(model_type="ViT", image_seq_len=64),
            SamplingSettings(steps=8, guidance_scale=3.0, guidance_decay="linear", temperature=11.0),
            fast_steps=4,
        ),
        _generator(
            "titok-s-128",
            GeneratorConfig(
                model_type="UViT", image_seq_len=128, hidden_size=1024, num_hidden_layers=20, intermediate_size=4096
            ),
            SamplingSettings(steps=64, guidance_scale=6.9, guidance_decay="power-cosine", temperature=2.8),
            fast_steps=8,
        ),
    )
}
