"""A CUDA device that is made of CPU tensors, and checks the order of everything that a real one runs asynchronously."""

from tests.fake_cuda.device import FAKE_NAME as FAKE_NAME
from tests.fake_cuda.device import FakeCuda as FakeCuda
from tests.fake_cuda.modes import CUDA as CUDA
from tests.fake_cuda.order import Race as Race
