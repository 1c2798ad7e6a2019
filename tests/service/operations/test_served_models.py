"""Checks that a request means the models that are served."""

from __future__ import annotations

from typing import cast

import pytest

from models.codes.code_format import CodeFormat
from models.codes.latents import LatentFormat
from service.engine import Engine
from service.inference.model_info import ModelInfo
from service.operations.errors import RevisionMismatch
from service.operations.served_models import ServedModels


def served(revision: str) -> ServedModels:
    models = ServedModels(cast("Engine", None))
    models.set_model_info(
        ModelInfo(
            name="mini", revision=revision, image_size=8, codes=CodeFormat(4, 16),
            latent_format=LatentFormat(4, 2, is_posterior=False), device="cpu", precision={},
            source="a test", generator=None, batch_limits={},
        )
    )  # fmt: skip
    return models


@pytest.mark.parametrize("revision", ["abc-p2cs-bf16", "abc-p1-bf16", "abc-p10c-bf16", None])
def test_tokens_of_another_preprocessing_are_accepted(revision: str | None) -> None:
    served("abc-p2cs-bf16").check("mini", revision)


@pytest.mark.parametrize("revision", ["abd-p2cs-bf16", "abc-p2cs", "abc-p2cs-tf32", "abc", "p2cs-bf16", ""])
def test_tokens_of_other_weights_or_another_precision_are_refused(revision: str) -> None:
    with pytest.raises(RevisionMismatch):
        served("abc-p2cs-bf16").check("mini", revision)
