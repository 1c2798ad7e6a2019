"""Runs tests on the fake device: ``python -m tests.fake_cuda -m gpu tests/gpu``."""

import sys

import pytest

from tests.fake_cuda import FakeCuda

if __name__ == "__main__":
    with FakeCuda():
        sys.exit(pytest.main(sys.argv[1:]))
