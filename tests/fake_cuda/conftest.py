"""A fake CUDA device for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_cuda import FakeCuda


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """The only device, with as much memory as is asked for; no access to memory may race."""
    with FakeCuda() as fake:
        yield fake
