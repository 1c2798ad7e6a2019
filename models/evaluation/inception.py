"""Metrics of the published protocol on Inception features: rFID, gFID, Inception Score, precision and recall.

The Inception network is torch-fidelity's (its weights are a file that the caller provides: ``weights-inception-2015-12-05-
6726825d.pth``; nothing here downloads). Its FID agrees with the original TensorFlow implementation; the ADM evaluator
(openai/guided-diffusion, evaluations/evaluator.py), which the published gFID come from, reads what :func:`write_npz`
writes. Published figures are of 50,000 images; fewer give larger distances.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.arrays import Pixels
from models.atomic_files import write_atomically
from models.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class InceptionFigures:
    """FID to the reference images, Inception Score in one split, precision and recall at k = 3, for ``images`` images."""

    images: int
    fid: float
    inception_score: float
    precision: float
    recall: float


def check_inception(weights: Path) -> None:
    """Raises what :func:`inception_figures` would, to fail early."""
    _torch_fidelity()
    try:
        # torch-fidelity unpickles this file without restrictions, so verify first that it holds only tensors.
        torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file of tensors"
        raise CheckpointError(
            f"cannot read the Inception weights {weights}: {reason}; torch-fidelity's release v0.2.0 has the file "
            f"weights-inception-2015-12-05-6726825d.pth"
        ) from error


def inception_figures(images: Pixels, references: Pixels, weights: Path, *, device: torch.device) -> InceptionFigures:
    """Compares uint8 [N, S, S, 3] with ``references`` uint8 [M, S, S, 3]; raises ``CheckpointError`` for the weights."""
    check_inception(weights)
    found: dict[str, float] = _torch_fidelity().calculate_metrics(
        input1=_Images(images),
        input2=_Images(references),
        fid=True,
        isc=True,
        prc=True,
        isc_splits=1,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        cuda=device.type == "cuda",
        cache=False,
        verbose=False,
    )
    return InceptionFigures(
        images=len(images),
        fid=found["frechet_inception_distance"],
        inception_score=found["inception_score_mean"],
        precision=found["precision"],
        recall=found["recall"],
    )


def write_npz(path: Path, images: Pixels) -> None:
    """Writes uint8 [N, S, S, 3] as ``arr_0``, as the ADM evaluator reads samples and references."""
    write_atomically(path, lambda sink: np.savez(sink, arr_0=images))


class _Images(Dataset[Tensor]):
    def __init__(self, images: Pixels) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        """Uint8 [3, S, S]."""
        return torch.from_numpy(np.array(self._images[row])).permute(2, 0, 1)


def _torch_fidelity() -> ModuleType:
    try:
        import torch_fidelity
    except RuntimeError as error:  # torchvision's kernels fit one build of torch only
        raise CheckpointError(f"torchvision does not fit torch {torch.__version__}: {error}") from error
    module: ModuleType = torch_fidelity
    return module
