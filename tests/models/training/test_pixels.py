import dataclasses
from pathlib import Path

import pytest
import torch

from models.data.datasets import InMemoryDataset
from models.errors import ConfigError
from models.networks.titok import TiTok
from models.training.config import InitialConfig, LossConfig, ScheduleConfig, TokenizerRun
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.seeding import batch_rows, seeded_generator
from models.training.task import Step


def step_at(number: int, progress: float = 0.0) -> Step:
    return Step(number, progress, seeded_generator(42, number))


@pytest.fixture
def task(tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset) -> PixelTask:
    return PixelTask(tokenizer_run, tiny_photographs, tiny_photographs)


@pytest.fixture
def trained(task: PixelTask, tmp_path: Path) -> Path:
    """A checkpoint to go on from."""
    task.export(task.network, tmp_path / "trained")
    return tmp_path / "trained"


def second_stage(run: TokenizerRun, checkpoint: Path, **losses: object) -> TokenizerRun:
    return dataclasses.replace(
        run,
        recipe="stage-2",
        initial=InitialConfig(checkpoint=str(checkpoint)),
        losses=dataclasses.replace(run.losses, **losses),  # type: ignore[arg-type]
    )


def test_the_quantizer_takes_no_part_before_its_time(task: PixelTask) -> None:
    losses = task.losses(step_at(0))
    assert losses["loss"].item() == losses["pixels"].item()
    later = task.losses(step_at(6))
    assert later["loss"].item() == pytest.approx(later["pixels"].item() + later["quantizer"].item())


def test_the_second_stage_moves_the_decoder_and_leaves_every_id_as_it_was(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, trained: Path, tmp_path: Path
) -> None:
    run = second_stage(tokenizer_run, trained, adversarial_weight=0.0)
    task = PixelTask(run, tiny_photographs, tiny_photographs)
    images = tiny_photographs.batch(torch.arange(8).numpy())
    ids, before = task.network.encode(images).ids, {n: t.clone() for n, t in task.network.state_dict().items()}
    train(task, tmp_path / "second")
    moved = {name for name, tensor in task.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert torch.equal(task.network.encode(images).ids, ids)
    assert {name.split(".")[0] for name in moved} == {"decoder"}


def test_a_wider_head_begins_with_the_pictures_of_the_narrow_one(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, trained: Path
) -> None:
    network = dataclasses.replace(tokenizer_run.network, pixel_head_channels=12, pixel_head_blocks=2)
    wider = second_stage(dataclasses.replace(tokenizer_run, network=network), trained)
    narrow, wide = (
        PixelTask(run, tiny_photographs, tiny_photographs).network.eval()
        for run in (second_stage(tokenizer_run, trained), wider)
    )
    codes = torch.nn.functional.normalize(torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(wide.decode_codes(codes), narrow.decode_codes(codes), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in narrow.parameters())


def test_a_vae_is_trained_through_its_noise_and_its_divergence(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    network = dataclasses.replace(tokenizer_run.network, quantize_mode="vae", use_l2_norm=False)
    run = dataclasses.replace(tokenizer_run, network=network, losses=LossConfig(kl_weight=1e-3))
    task = PixelTask(run, tiny_photographs, tiny_photographs)
    losses = task.losses(step_at(0))
    assert losses["loss"].item() == pytest.approx(losses["pixels"].item() + 1e-3 * losses["divergence"].item())
    figures = train(task, tmp_path)
    assert "codes_used" not in figures
    assert figures["validation_psnr"] > 5


def test_a_linear_pixel_head_starts_at_middle_grey_too(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset
) -> None:
    linear = dataclasses.replace(tokenizer_run.network, pixel_head="linear")
    task = PixelTask(dataclasses.replace(tokenizer_run, network=linear), tiny_photographs, tiny_photographs)
    hidden = task.network.decoder.ffn(torch.randn(4, 32, 1, 1))
    assert hidden.mean().item() == pytest.approx(0.45, abs=0.05)


def test_the_picture_of_a_run_has_photographs_above_and_reconstructions_below(task: PixelTask) -> None:
    picture = task.pictures(task.network.eval())
    assert picture.shape == (2 * 16, 16 * 16, 3)
    first = (task.validation.batch(torch.arange(1).numpy())[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert torch.equal(picture[:16, :16], first)
    assert not torch.equal(picture[16:, :16], first)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("one-stage", {"is_legacy": True, "encoder_patch_size": 16, "decoder_patch_size": 16}, "is_legacy = false"),
        ("stage-2", {"quantize_mode": "vae"}, "quantize_mode = 'vq'"),
        ("stage-2", {}, "needs initial.checkpoint"),
        (
            "stage-2",
            {"is_legacy": True, "encoder_patch_size": 16, "decoder_patch_size": 16},
            "finetune_decoder = true",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_the_network_is_refused(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, recipe: str, change: dict[str, object], message: str
) -> None:
    network = dataclasses.replace(tokenizer_run.network, **change)  # type: ignore[arg-type]
    run = dataclasses.replace(tokenizer_run, recipe=recipe, network=network)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        PixelTask(run, tiny_photographs, tiny_photographs)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_photograph_is_seen_once_an_epoch_in_a_new_order(parts: int) -> None:
    schedule = ScheduleConfig(steps=10, batch_size=8, warmup_steps=0, micro_batches=parts)
    epochs = [
        [
            row
            for step in range(5 * e, 5 * e + 5)
            for part in range(parts)
            for row in batch_rows(40, schedule, step, part)
        ]
        for e in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_a_two_stage_network_is_fine_tuned_through_its_pixel_decoder(
    tokenizer_run: TokenizerRun, tmp_path: Path
) -> None:
    """The published second stage in miniature: patch discriminator, soft codes, MaskGIT-VQGAN's decoder."""
    network = dataclasses.replace(
        tokenizer_run.network,
        image_size=32,
        is_legacy=True,
        finetune_decoder=True,
        encoder_patch_size=16,
        decoder_patch_size=16,
    )
    photographs = InMemoryDataset(
        torch.randint(256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy(),
        torch.zeros(8, dtype=torch.int64).numpy(),
    )
    from models.checkpoints.configuration import config_document
    from models.training.checkpoints import save_checkpoint

    first = TiTok(dataclasses.replace(network, finetune_decoder=False))
    save_checkpoint(tmp_path / "first", config_document(first.config), first.state_dict())
    run = second_stage(dataclasses.replace(tokenizer_run, network=network), tmp_path / "first", adversarial_weight=0.01)
    task = PixelTask(
        dataclasses.replace(run, discriminator=dataclasses.replace(run.discriminator, channels=8)),
        photographs,
        photographs,
    )
    losses = task.losses(step_at(0))
    losses["loss"].backward()
    trained = {name.split(".")[0] for name, p in task.network.named_parameters() if p.grad is not None}
    assert trained == {"decoder", "pixel_quantize", "pixel_decoder"}
    assert task.after_step(step_at(0), [])["discriminator"].item() > 0
