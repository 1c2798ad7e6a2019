from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from models.atomic_files import write_atomically
from models.training.checkpoints import load_state, save_state


def test_a_saved_state_loads_unchanged(tmp_path: Path) -> None:
    save_state(tmp_path / "new" / "state.pt", {"done": 3, "weights": torch.arange(3.0)})
    state = load_state(tmp_path / "new" / "state.pt")
    assert state["done"] == 3
    assert state["weights"].tolist() == [0.0, 1.0, 2.0]


def test_the_saved_state_survives_a_full_disk(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"done": 1})

    def fails_half_way(file: BinaryIO) -> None:
        file.write(b"half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "state.pt", fails_half_way)
    assert load_state(tmp_path / "state.pt") == {"done": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
