"""Lite0 features of many images, computed in batches and cached on disk.

::

    images uint8 [N, S, S, 3] -> [0, 1], S to the nearest multiple of 32 -> blocks 0, 2, 4, 10, 14 (perceptual distance)
                                                                         -> 1280 pooled (distributions, neighbours)
"""

import hashlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.arrays import Pixels
from models.atomic_files import write_atomically
from models.evaluation.lite0 import Lite0
from models.evaluation.progress import Track, no_progress
from models.runtime.precision import FORMATS

BATCH_SIZE = 32
_STRIDE = 32
_FINGERPRINT_IMAGES = 256


class Features(NamedTuple):
    """``blocks`` float32 [B, C, H, W] each, of ``FEATURE_BLOCKS``, on the network's device; ``pooled`` float32 [B, 1280] on
    the host.
    """

    blocks: tuple[Tensor, ...]
    pooled: Tensor


def as_tensor(images: Pixels) -> Tensor:
    """Uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(255.0)


def batches(count: int) -> list[slice]:
    """Slices of ``count`` images, one for each batch."""
    return [slice(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]


@torch.inference_mode()
def extract_features(network: Lite0, images: Tensor) -> Features:
    """Block features and pooled features of images [B, 3, S, S] in [0, 1]."""
    with FORMATS["float32"].on(network.device):
        blocks = network.features(_resized(images.to(network.device)))
        return Features(blocks, network.pool(blocks[-1]).cpu())


def cached_embeddings(
    network: Lite0, images: Pixels, *, cache: Path, description: str, track: Track = no_progress
) -> Tensor:
    """Pooled features float16 [N, 1280] of uint8 [N, S, S, 3], mapped from a file.

    Float16 changes a cosine by about 1e-4. The file's name is a digest of the network's weights and of 256 of the images.
    """
    if not len(images):
        return torch.empty(0, network.head.out_channels, dtype=torch.float16)
    file = cache / f"lite0-{_fingerprint(network, images)}.npy"
    if not file.exists():

        def write(sink: BinaryIO) -> None:
            shape = (len(images), network.head.out_channels)
            np.lib.format.write_array_header_1_0(sink, {"descr": "<f2", "fortran_order": False, "shape": shape})
            sink.writelines(_embed(network, images[part]).data for part in track(batches(len(images)), description))

        write_atomically(file, write)
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _embed(network: Lite0, images: Pixels) -> NDArray[np.float16]:
    return extract_features(network, as_tensor(images)).pooled.numpy().astype("<f2")


def _resized(images: Tensor) -> Tensor:
    size = images.shape[-1]
    wanted = max(round(size / _STRIDE), 1) * _STRIDE
    if wanted == size:
        return images
    return F.interpolate(images, (wanted, wanted), mode="bilinear", antialias=True)


def _fingerprint(network: Lite0, images: Pixels) -> str:
    digest = hashlib.sha256(str(images.shape).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    for row in np.linspace(0, len(images) - 1, min(len(images), _FINGERPRINT_IMAGES)).astype(int):
        digest.update(np.ascontiguousarray(images[row]).data)
    return digest.hexdigest()[:12]
