"""Types of the arrays that models and service exchange; shapes are given where they are used."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
"""Token ids or class labels."""

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB images, values 0..255."""

Latents: TypeAlias = NDArray[np.float32]
"""Latent vectors, or the moments of a VAE's posterior."""
