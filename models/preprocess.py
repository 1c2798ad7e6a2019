"""Preprocessing of images to S x S uint8 RGB crops, as in the published evaluation and pre-tokenization.

::

    any PIL image ── to_rgb ──> RGB ──┬── eval_crop ──> [S, S, 3]         encode, evaluation
                                      ├── crop_at ────> [S, S, 3]         training
                                      ├── uncropped ──> [H, W, 3]         training: what crop_at is cut from
                                      ├── adm_crop ───> [S, S, 3]         the ADM crop
                                      └── ten_crop ───> [10, S, S, 3]     pre-tokenization of a training set

Pixels follow https://github.com/bytedance/1d-tokenizer and, for the ADM crop, https://github.com/openai/guided-diffusion.
Resampling is Pillow's, which computes in fixed point; the order of its two passes is fixed here, so the pixels are the
same on every machine and with every release of Pillow.

All crops take an RGB image of any size and return uint8 RGB arrays. They raise ``ValueError`` for another mode, a size
below 1, or another argument out of range.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from models.arrays import Pixels

_WHITE = (255, 255, 255)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the inverse transposition."""

_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_CONVERTIBLE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})

_MAX_RESIZED_PIXELS = 1 << 21
"""Largest resized image in memory (8 MiB), exceeded only by aspect ratios beyond 1 : 32 (at S = 256)."""


# --- any image -> RGB ------------------------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any image to RGB, with EXIF orientation applied and transparency over white.

    - Orientation is that of EXIF alone, not of XMP, as in browsers. Unreadable EXIF counts as none.
    - Transparency is an alpha channel, premultiplied or not, palette alpha, or a transparent colour.
    - 16-bit gray keeps its high byte. ``Image.convert`` would clip instead and turn most of such an image white.
    - Embedded colour profiles are not applied, as in the published evaluation.

    Loads ``image`` and returns it if nothing had to be done, or else a new image without metadata. Raises
    ``ValueError`` that names the mode for "F" (its range is unknown), for "I" with values outside 0..65535, and for
    modes without an RGB form; ``OSError`` if the pixels cannot be loaded.
    """
    drop_xmp(image)  # before TIFF is turned while it is loaded
    image.load()
    method = _UPRIGHT.get(orientation_of(image))
    rgb = image if image.mode == "RGB" and not image.has_transparency_data else _flatten(image)
    if method is not None:
        rgb = rgb.transpose(method)
    if rgb is not image:
        rgb.info = {}  # so that the orientation is not applied again
    return rgb


def drop_xmp(image: Image.Image) -> None:
    """Pillow takes the orientation of XMP where EXIF has none; browsers and libvips do not."""
    image.info.pop("xmp", None)
    image.info.pop("XML:com.adobe.xmp", None)


def orientation_of(image: Image.Image) -> int:
    """The orientation of a loaded image by EXIF, 1 to 8; 1: upright, or unknown."""
    drop_xmp(image)  # also that which follows the pixels of a PNG file
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many types for damaged metadata; the pixels are still good
        return 1
    return orientation if isinstance(orientation, int) else 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return _flatten_sixteen_bit(image)
    if image.has_transparency_data:
        return _over_white(_with_alpha(image))
    if image.mode not in _CONVERTIBLE:
        raise ValueError(
            f"an image of mode {image.mode!r} cannot be converted to 8-bit RGB; convert it before sending it"
        )
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow cannot convert premultiplied gray directly to RGBA
        image = image.convert("LA")
    if image.mode == "RGB":
        key = image.info["transparency"]
        # Pillow reduced a 16-bit PNG to 8 bits, but not its transparent colour: they cannot be compared.
        if not isinstance(key, tuple) or max(key) > 255:
            return image
    return image.convert("RGBA")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.copy()
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(image, mask=image.getchannel("A"))
    return white


def _flatten_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image.convert("I"))
    if image.mode == "I" and values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ValueError(
            f"mode 'I' with values from {values.min()} to {values.max()}: only 16-bit gray, 0 to 65535, is supported"
        )
    gray = (values >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return Image.fromarray(gray).convert("RGB")


# --- RGB -> S x S ----------------------------------------------------------------------------------------------------


def eval_crop(image: Image.Image, size: int) -> Pixels:
    """The published evaluation's crop: resize the shorter side to ``size``, then crop the centre: uint8 [S, S, 3].

    Bicubic with antialiasing; the longer side becomes ``int(size * long / short)``; the crop offset is
    ``(side - size) / 2`` rounded half to even.
    """
    resized = _shorter_side_to(image, size)
    return _resize_crop(image, resized, _centre_half_even(resized, size), size)


def eval_crop_reduced(
    image: Image.Image, size: int, original_size: tuple[int, int], ends_first: tuple[bool, bool] = (False, False)
) -> Pixels:
    """Nearly :func:`eval_crop` of an image that was decoded at a reduced scale: uint8 [S, S, 3].

    ``original_size`` (width, height) is that of the whole image. Its sides divided by the scale were rounded up, so that
    the last column and row of ``image`` stand for fewer pixels; the first ones where ``ends_first``, of a turned image.
    """
    _check(image, size)
    short = min(original_size)
    width, height = (size * side // short for side in original_size)
    if image.size == original_size or width * height > _MAX_RESIZED_PIXELS:
        return eval_crop(image, size)
    spans = list[tuple[float, float]]()
    for whole, part, is_first in zip(original_size, image.size, ends_first, strict=True):
        span = whole / -(-whole // part)
        spans.append((part - span, part) if is_first else (0, span))
    (left, right), (top, bottom) = spans
    narrow = image.resize((width, image.height), Image.Resampling.BICUBIC, (left, 0, right, image.height))
    resized = narrow.resize((width, height), Image.Resampling.BICUBIC, (0, top, width, bottom))
    x, y = _centre_half_even((width, height), size)
    return np.array(resized.crop((x, y, x + size, y + size)), dtype=np.uint8)


def crop_at(image: Image.Image, size: int, position: tuple[float, float]) -> Pixels:
    """The published training crop: resize as in :func:`eval_crop`, then crop at ``position``: uint8 [S, S, 3].

    ``position`` (x, y), each in [0, 1), is mapped uniformly to the possible offsets.
    """
    resized = _shorter_side_to(image, size)
    if not all(0.0 <= part < 1.0 for part in position):
        raise ValueError(f"position is {position}; two numbers from 0 to below 1 are expected")
    offset = (int(position[0] * (resized[0] - size + 1)), int(position[1] * (resized[1] - size + 1)))
    return _resize_crop(image, resized, offset, size)


def uncropped(image: Image.Image, size: int) -> Pixels:
    """The image resized as in :func:`eval_crop`: uint8 [H, W, 3], min(H, W) = S = ``size``.

    Of very elongated images, beyond 1 : 32 at S = 256, only the crop of :func:`eval_crop` is kept.
    """
    resized = _shorter_side_to(image, size)
    if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        return eval_crop(image, size)
    return np.array(_resize(image, resized, Image.Resampling.BICUBIC), dtype=np.uint8)


def adm_crop(image: Image.Image, size: int) -> Pixels:
    """The ADM crop: halve while the shorter side is at least ``2 * size``, resize, crop the centre: uint8 [S, S, 3].

    Halves with a box filter and resizes bicubically. The longer side is rounded, the offset is ``(side - size) // 2``.
    Differs from :func:`eval_crop` when shrinking.
    """
    _check(image, size)
    while min(image.size) >= 2 * size:
        image = _resize(image, (image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    return _resize_crop(image, resized, ((resized[0] - size) // 2, (resized[1] - size) // 2), size)


def ten_crop(image: Image.Image, size: int = 256, *, pad_factor: float = 1.1) -> Pixels:
    """The ten crops for pre-tokenization of a training set: uint8 [10, S, S, 3].

    Corners (top left, top right, bottom left, bottom right) and centre of the ADM crop at ``int(size * pad_factor)``
    (at least 1), then the same five of the mirrored image.
    """
    if not 1 <= pad_factor < math.inf:
        raise ValueError(f"pad_factor is {pad_factor}; 1 or more is expected")
    padded = adm_crop(image, int(size * pad_factor))
    far = padded.shape[0] - size
    left, top = _centre_half_even((padded.shape[1], padded.shape[0]), size)
    corners = ((0, 0), (0, far), (far, 0), (far, far), (top, left))
    return np.stack([source[y : y + size, x : x + size] for source in (padded, padded[:, ::-1]) for y, x in corners])


def _check(image: Image.Image, size: int) -> None:
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode!r}; RGB is expected (see to_rgb)")
    if size < 1:
        raise ValueError(f"size is {size}; 1 or more is expected")


def _shorter_side_to(image: Image.Image, size: int) -> tuple[int, int]:
    """Width and height after resizing; integer arithmetic, so that truncation does not depend on rounding."""
    _check(image, size)
    short = min(image.size)
    return size * image.width // short, size * image.height // short


def _centre_half_even(sides: tuple[int, int], size: int) -> tuple[int, int]:
    return round((sides[0] - size) / 2), round((sides[1] - size) / 2)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """``Image.resize`` with the horizontal pass first.

    Each pass rounds to 8 bits, so the order matters. Since version 13 Pillow begins with the vertical pass for tall
    images, which changes up to a seventh of the values of a noisy image.
    """
    return image.resize((size[0], image.height), resample).resize(size, resample)


def _resize_crop(image: Image.Image, resized: tuple[int, int], offset: tuple[int, int], size: int) -> Pixels:
    """Resizes to ``resized`` (width, height; the shorter is ``size``) and crops at ``offset`` (x, y)."""
    if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
        return _resize_crop_elongated(image, resized, offset, size)
    x, y = offset
    square = _resize(image, resized, Image.Resampling.BICUBIC).crop((x, y, x + size, y + size))
    return np.array(square, dtype=np.uint8)


def _resize_crop_elongated(image: Image.Image, resized: tuple[int, int], offset: tuple[int, int], size: int) -> Pixels:
    """The same pixels as :func:`_resize_crop` without the long resized image, which for 1 x 10000 would need 2.6 GB.

    The pass along the long axis is computed for the ``size`` needed positions only. Pillow's ``resize(box=...)`` has a
    single-precision box, which changes pixels.
    """
    if resized[0] > resized[1]:
        seen, taps = _bicubic_taps(image.width, resized[0], offset[0], size)
        columns = np.asarray(image.crop((seen.start, 0, seen.stop, image.height))).swapaxes(0, 1)
        narrow = Image.fromarray(np.ascontiguousarray(_apply(taps, columns).swapaxes(0, 1)))
        return np.array(narrow.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)
    seen, taps = _bicubic_taps(image.height, resized[1], offset[1], size)
    rows = image.crop((0, seen.start, image.width, seen.stop))
    return _apply(taps, np.asarray(rows.resize((size, rows.height), Image.Resampling.BICUBIC)))


_COEFFICIENT_BITS = 22
"""Pillow's fixed point for 8-bit channels: 32 bits less 8 of the sample less 2 of headroom for the sums."""


def _bicubic_taps(length: int, resized: int, first: int, count: int) -> tuple[range, NDArray[np.int64]]:
    """Pillow's bicubic coefficients for the outputs ``first .. first + count`` of ``resized``.

    Returns the range of n inputs (of ``length``) they depend on, and fixed-point weights int64 [count, n].
    """
    scale = length / resized
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    windows: list[tuple[int, list[float]]] = []
    for output in range(first, first + count):
        centre = (output + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), length)
        weights = [_bicubic((position - centre + 0.5) / stretch) for position in range(start, stop)]
        total = sum(weights)
        windows.append((start, [weight / total for weight in weights]))

    begin = windows[0][0]
    end = max(start + len(weights) for start, weights in windows)
    taps = np.zeros((count, end - begin), np.int64)
    for row, (start, weights) in enumerate(windows):
        fixed = [int(math.copysign(0.5, weight) + weight * (1 << _COEFFICIENT_BITS)) for weight in weights]
        taps[row, start - begin : start - begin + len(weights)] = fixed
    return range(begin, end), taps


def _bicubic(x: float) -> float:
    """Keys' cubic with a = -0.5, in the operation order of Pillow's C source (the last bit of a weight matters)."""
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _apply(taps: NDArray[np.int64], lines: Pixels) -> Pixels:
    """Weighted sums, rounded and clipped: taps [count, n], lines [n, m, 3] -> uint8 [count, m, 3]."""
    sums: NDArray[np.int64] = np.tensordot(taps, lines.astype(np.int64), axes=1)
    rounded = (sums + (1 << (_COEFFICIENT_BITS - 1))) >> _COEFFICIENT_BITS
    return rounded.clip(0, 255).astype(np.uint8)
