"""Seams and entropy are what they must be."""

from __future__ import annotations

import pytest
import torch

from models.evaluation.measures import entropy_bits, patch_steps, seam_ratio


def test_steps_are_counted_on_borders_and_inside_of_each_image() -> None:
    stripes = (torch.arange(8) // 4).float().expand(1, 3, 8, 8)  # one border of two patches, a step of 1 there
    flat = torch.zeros(1, 3, 8, 8)
    across, inside = patch_steps(torch.cat([stripes, flat]), 4).T
    assert across.tolist() == [0.5, 0.0]  # the stripes are upright: no step from row to row
    assert inside.tolist() == [0.0, 0.0]


def test_a_grid_of_flat_patches_has_seams_and_noise_does_not() -> None:
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert seam_ratio(noise, 16) == pytest.approx(1.0, abs=0.02)
    patches = noise[..., :4, :4].repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert seam_ratio(patches + 0.01 * noise, 16) > 10


def test_entropy_of_equally_used_codes_is_their_number_of_bits() -> None:
    assert entropy_bits(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(2.0)
