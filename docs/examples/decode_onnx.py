"""Decodes a code with ONNX Runtime: needs the packages numpy, onnxruntime and pillow, and nothing of this project.

titok export titok-mini-32 --part decoder --output exported
python docs/examples/decode_onnx.py exported/titok-mini-32-decoder-float32.onnx CODE picture.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def ids_of(code: str, codebook_size: int) -> np.ndarray:
    """The text of a code -> ids int64 [1, K]: big-endian numbers of ceil(log2 V) bits."""
    bits, text = (codebook_size - 1).bit_length(), "".join(f"{ALPHABET.index(letter):06b}" for letter in code)
    return np.array([[int(text[first : first + bits], 2) for first in range(0, len(text) - bits + 1, bits)]])


def main(model: str, code: str, picture: str) -> None:
    """Writes the picture of a code."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map  # also the revision that the code must be of
    (images,) = session.run(["images"], {"ids": ids_of(code, int(facts["codebook_size"]))})  # uint8 [1, S, S, 3]
    Image.fromarray(images[0]).save(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
