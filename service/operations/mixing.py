"""Mixes tokens of several images: each position takes the token of one image, or the code nearest to the weighted mean.

::

    ids [n, K] ──> codes [n, K, C] ── weights ──> means [K, C] ── nearest of [V, C] ──> ids [K]
         └──────── positions: take the token of image i here ─────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.arrays import Ids


def mix_tokens(
    tokens: Ids,
    codebook: npt.NDArray[np.float32],
    *,
    weights: Sequence[float] | None = None,
    positions: Sequence[int | None] | None = None,
) -> Ids:
    """Ids int64 [n, K] in 0..V-1 -> ids int64 [K].

    Args:
        tokens: one row an image.
        codebook: the codes, [V, C], as the decoder looks them up.
        weights: n numbers of 0 or more with a sum above 0; by default all are equal.
        positions: for each of the K positions the row whose token it takes, None for the mean.

    Where all rows with a weight above 0 agree, their token is kept, even if another code is equally near.
    """
    share = np.ones(len(tokens)) if weights is None else np.asarray(weights, np.float64)
    share = share / share.max()  # avoids overflow of the sum
    share = share / share.sum()
    codes = codebook.astype(np.float64)
    means = np.zeros((tokens.shape[1], codes.shape[1]))
    for weight, row in zip(share, tokens, strict=True):
        means += weight * codes[row]
    # |m|^2 is the same for every code. float64, so that rounding does not merge distances.
    mixed: Ids = (np.square(codes).sum(1) - 2.0 * means @ codes.T).argmin(1)
    weighing = tokens[share > 0]
    mixed = np.where((weighing == weighing[0]).all(0), weighing[0], mixed)
    for position, source in enumerate(positions or ()):
        if source is not None:
            mixed[position] = tokens[source, position]
    return mixed
