"""The models as the engine calls them: arrays and plain states in, arrays out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from models.sampling_settings import SamplingSettings
from service.device import ModelDevice
from service.engine import RowState
from tests.tiny_models import tiny_generator, tiny_tokenizer

SETTINGS = SamplingSettings(steps=5, guidance_scale=3.0, guidance_decay="linear", temperature=4.0)


@pytest.fixture
def device() -> ModelDevice:
    return ModelDevice(tiny_tokenizer(), tiny_generator())


def state(label: int | None = 1, seed: int = 7, *, step: int = 0, tokens: np.ndarray | None = None) -> RowState:
    return RowState(label=label, seed=seed, settings=SETTINGS, step=step, tokens=tokens)


def test_states_stepped_to_the_end_are_what_the_generator_makes(device: ModelDevice) -> None:
    states = [state(None, 1), state(2, 2), state(4, 3)]
    for step in range(SETTINGS.steps):
        stepped = device.step(pickle.loads(pickle.dumps(states)))  # noqa: S301  as to another process
        assert (stepped.tokens.dtype, stepped.sampled.dtype, stepped.finished.dtype) == (np.int64, np.int64, np.bool_)
        assert stepped.tokens.shape == stepped.sampled.shape == (3, 16)
        assert stepped.finished.tolist() == [step == SETTINGS.steps - 1] * 3
        known = stepped.tokens != 64
        assert (stepped.tokens[known] == stepped.sampled[known]).all()
        states = [
            state(was.label, was.seed, step=was.step + 1, tokens=tokens)
            for was, tokens in zip(states, stepped.tokens, strict=True)
        ]
    expected = tiny_generator().generate([None, 2, 4], seeds=[1, 2, 3], **vars(SETTINGS))
    assert (np.stack([done.tokens for done in states if done.tokens is not None]) == expected.numpy()).all()


def test_a_step_does_not_depend_on_the_other_rows_and_can_be_done_again(device: ModelDevice) -> None:
    first = state(3, 5)
    later = state(1, 6, step=2, tokens=device.step([state(1, 6)]).tokens[0])
    unguided = state(None, 8)
    together, again = (device.step([first, unguided, later]) for _ in range(2))
    assert (together.tokens == again.tokens).all()
    for row, tokens in zip([first, unguided, later], together.tokens, strict=True):
        assert (device.step([row]).tokens[0] == tokens).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            RowState(label=1, seed=0, settings={"steps": 8}, step=0, tokens=None),
            TypeError,
            "SamplingSettings, not dict",
        ),
        (state(5), ValueError, r"class 5 is out of range 0\.\.4"),
        (state(step=5), ValueError, r"step 5 is out of range 0\.\.4"),
        (state(step=1, tokens=np.full(16, 65)), ValueError, "64 for a masked one"),
        (state(step=1, tokens=np.zeros(3, np.int64)), ValueError, r"tokens int64 \[16\]"),
    ],
)
def test_a_state_that_is_none_of_the_generators_is_refused(
    device: ModelDevice, wrong: RowState, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        device.step([state(), wrong])


def test_without_a_generator_no_row_is_stepped() -> None:
    with pytest.raises(TypeError, match="no generator"):
        ModelDevice(tiny_tokenizer(), None).step([state()])
