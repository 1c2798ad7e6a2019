import torch

from models.training.tokenizer import augment


def test_views_are_shifted_and_half_of_them_mirrored() -> None:
    image = torch.arange(16.0).expand(1, 3, 16, 16)
    views = augment(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0), max_shift=2)
    falling = (views[:, 0, 8].diff(dim=1) < 0).any(dim=1)
    assert 70 < int(falling.sum()) < 130
    centres = views[~falling, 0, 8, 8]
    assert set(centres.tolist()) == {6.0, 7.0, 8.0, 9.0, 10.0}
