import pytest
import torch
from torch import nn

from models.networks.titok import TiTok
from models.training.config import OptimizerConfig, ScheduleConfig, TokenizerRun
from models.training.optimizers import Muon, build_optimizers, learning_rate, orthogonalised


def test_orthogonalised_matrices_keep_directions_and_lose_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 24, 40), (3, 40, 24)):
        matrices = torch.randn(shape, generator=generator) @ torch.diag(torch.logspace(0, -1, shape[2]))
        result = orthogonalised(matrices, torch.float32)
        sizes = torch.linalg.svdvals(result)
        assert sizes.min() > 0.5
        assert sizes.max() < 1.3
        assert ((result * matrices).sum((1, 2)) > 0).all()


def test_a_step_is_that_of_torch_where_nothing_is_packed() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(24, 40, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([{"params": [ours]}], lr=1e-2, weight_decay=0.01)
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(24, 40, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-4)  # bfloat16 inside, steps of 2e-3


def test_packed_projections_move_as_separate_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 24, 8, generator=generator)
    packed = nn.Parameter(start.clone())
    parts = [nn.Parameter(part.clone()) for part in start.chunk(3)]
    for parameters, muon in (
        ([packed], Muon([{"params": [packed], "parts": 3}], lr=1e-2)),
        (parts, Muon([{"params": parts}], lr=1e-2)),
    ):
        for parameter, part in zip(parameters, gradient.chunk(len(parameters)), strict=True):
            parameter.grad = part.clone()
        muon.step()
    torch.testing.assert_close(packed.detach(), torch.cat([part.detach() for part in parts]))


def test_every_parameter_belongs_to_one_optimizer(tokenizer_run: TokenizerRun) -> None:
    network = TiTok(tokenizer_run.network)
    muon, adamw = build_optimizers(network, OptimizerConfig(muon_lr=1.0, adamw_lr=1.0), torch.float32)
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    moved = [by_id[id(p)] for each in (muon, adamw) for group in each.param_groups for p in group["params"]]
    assert sorted(moved) == sorted(by_id.values())
    assert {by_id[id(p)].rsplit(".", 2)[-2] for p in muon.param_groups[0]["params"]} == {"out_proj", "c_fc", "c_proj"}
    assert {by_id[id(p)].rsplit(".", 1)[-1] for p in muon.param_groups[1]["params"]} == {"in_proj_weight"}


def test_without_muon_the_published_tensors_are_not_decayed(tokenizer_run: TokenizerRun) -> None:
    network = TiTok(tokenizer_run.network)
    (adamw,) = build_optimizers(network, OptimizerConfig(adamw_lr=1.0, weight_decay=0.5), torch.float32)
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, spared = ({by_id[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.5, 0.0]
    assert decayed | spared == set(by_id.values())
    assert {"encoder.transformer.0.attn.in_proj_weight", "decoder.head.out.weight"} <= decayed
    assert {"latent_tokens", "encoder.patch_embed.weight", "quantize.embedding.weight"} <= spared
    assert not any(name.endswith("bias") for name in decayed)


def test_frozen_parameters_are_left_out(tokenizer_run: TokenizerRun) -> None:
    network = TiTok(tokenizer_run.network)
    network.encoder.requires_grad_(False)
    muon, adamw = build_optimizers(network, OptimizerConfig(muon_lr=1.0, adamw_lr=1.0), torch.float32)
    moved = {id(p) for each in (muon, adamw) for group in each.param_groups for p in group["params"]}
    assert not moved & {id(p) for p in network.encoder.parameters()}


def test_the_learning_rate_rises_then_falls_along_a_cosine() -> None:
    schedule = ScheduleConfig(steps=100, batch_size=1, warmup_steps=10, final_lr=0.02)
    assert learning_rate(schedule, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(schedule, 9, 0.09) == learning_rate(schedule, 10, 0.1) == pytest.approx(1.0)
    assert learning_rate(schedule, 55, 0.55) == pytest.approx(0.51)
    assert learning_rate(schedule, 99, 1.0) == pytest.approx(0.02)


def test_a_learning_rate_with_a_start_of_its_own_rises_from_there_and_ends_with_the_run() -> None:
    schedule = ScheduleConfig(steps=100, batch_size=1, warmup_steps=10, final_lr=0.02)
    assert learning_rate(schedule, 40, 0.4, start=40) == pytest.approx(0.1)
    assert learning_rate(schedule, 75, 0.75, start=40) == pytest.approx(0.51)
    assert learning_rate(schedule, 99, 1.0, start=40) == pytest.approx(0.02)
    assert learning_rate(schedule, 100, 1.0, start=95) == pytest.approx(0.6)  # a warm-up longer than the run
