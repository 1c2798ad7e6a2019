"""The service's decoding of images in a process of its own, so that one which crashes or hangs it is found and not felt.

Standard input: a length in 4 bytes and that many bytes, again and again. Standard output: a line of JSON for each.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from models.preprocess import eval_crop
from service.api.error_table import to_problem
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageError
from service.imaging.limits import MediaLimits
from tests.fuzz.memory import memory_of

__all__ = ["Answer"]

IMAGE_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of an image: 200 or the problem's status; ``error`` is the traceback of any other exception.

    ``peak`` is how many bytes the process grew by meanwhile, at most, ``reserved`` how many it had said it would, and
    ``resident`` what it holds afterwards.
    """

    status: int
    name: str
    error: str | None
    seconds: float
    peak: int
    reserved: int
    resident: int


def decode(data: bytes) -> Answer:
    """As ``service.operations.preprocessing`` does it."""
    reserved: list[int] = []
    status, name, error = 500, "exception", None
    before = memory_of()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    begin = time.perf_counter()
    try:
        decoded = decode_image(data, limits=MediaLimits(), reserve=reserved.append)
        pixels = eval_crop(decoded.image, IMAGE_SIZE)
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3), pixels.shape
        status, name = 200, decoded.format
        del decoded, pixels
    except ImageError as refusal:
        problem = to_problem(refusal)
        status, name = int(problem.status), problem.kind.slug
    except BaseException:
        error = traceback.format_exc()
    seconds, peak = time.perf_counter() - begin, memory_of(name="VmHWM") - before
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for a while is no leak
    return Answer(
        status=status,
        name=name,
        error=error,
        seconds=seconds,
        peak=max(peak, 0),
        reserved=sum(reserved),
        resident=memory_of(),
    )


def main() -> None:
    """Answers until its input ends."""
    faulthandler.enable()
    source, sink = sys.stdin.buffer, sys.stdout
    while head := source.read(4):
        print(json.dumps(asdict(decode(source.read(int.from_bytes(head, "big"))))), file=sink, flush=True)


if __name__ == "__main__":
    main()
