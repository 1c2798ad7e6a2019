"""Latents as raw bytes and .npy files, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from models.codes.code_format import CodeError
from models.codes.latents import LatentFormat, to_dtype, to_npy

FORMAT = LatentFormat(num_tokens=4, token_size=3, is_posterior=True)
LATENTS = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_raw_bytes_and_npy_files_give_the_same_latents(dtype: str) -> None:
    stored = to_dtype(LATENTS, dtype)
    for read in (FORMAT.from_bytes(stored.tobytes(), dtype), FORMAT.from_npy(to_npy(stored))):
        assert (read.dtype, read.shape) == (np.float32, (2, 4, 3))
        assert (read == stored).all()
    assert (FORMAT.from_npy(to_npy(stored[0])) == stored[:1]).all()
    assert (FORMAT.from_npy(to_npy(stored.astype(stored.dtype.newbyteorder(">")))) == stored).all()


def test_values_beyond_float16_become_its_largest() -> None:
    assert to_dtype(np.array([[[1e6, -1e6, 1.0]]], np.float32), "float16").tolist() == [[[65504.0, -65504.0, 1.0]]]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _with_header(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\x93NUMPY\x09\x00",
        to_npy(LATENTS)[:-1],
        to_npy(LATENTS) + b"0",
        to_npy(LATENTS[:, :3]),
        to_npy(LATENTS[None]),
        to_npy(LATENTS[:0]),
        to_npy(LATENTS.astype(np.float64)),
        to_npy(np.zeros((2, 4, 3), np.int16)),
        to_npy(np.asfortranarray(LATENTS)),
        to_npy(np.where(LATENTS > 1, np.float32(np.nan), LATENTS)),
        _npy(np.full((4, 3), None, object)),
        _with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4, 3), }"),
        _with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 3), }", bytes(48)),
        _with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4, 3), }"),
        _with_header(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 3), }", bytes(48)),
        _with_header(b"(" * 500),
        _with_header(b"-" * 500 + b"1"),
        _with_header(b"'''"),
        _with_header(b"{" * 60_000),
        _with_header(b"\x00\xff"),
    ],
)
def test_other_files_are_refused(file: bytes) -> None:
    with pytest.raises(CodeError):
        FORMAT.from_npy(file)


def test_other_bytes_are_refused() -> None:
    for data, dtype, message in (
        (b"", "float32", "groups of 48 bytes, not 0"),
        (bytes(47), "float32", "groups of 48 bytes, not 47"),
        (bytes(24), "float64", "float32 or float16, not float64"),
        (np.full((4, 3), np.inf, "<f2").tobytes(), "float16", "finite"),
    ):
        with pytest.raises(CodeError, match=message):
            FORMAT.from_bytes(data, dtype)


def test_the_mean_is_the_default_and_samples_need_a_posterior() -> None:
    encoded = np.concatenate([LATENTS, np.zeros_like(LATENTS)], axis=2)
    assert (FORMAT.latents_of(encoded) == LATENTS).all()
    assert (FORMAT.encoded([row.tobytes() for row in encoded]) == encoded).all()
    with pytest.raises(CodeError, match="only a VAE"):
        LatentFormat(num_tokens=4, token_size=3, is_posterior=False).latents_of(LATENTS, [1, 2])
