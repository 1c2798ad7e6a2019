"""Sound files of unusual kinds: decoded like libtiff and browsers do, or refused by name."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image

from service.imaging.errors import UnsupportedImageFormat
from tests.service.imaging.image_files import SEEDS, SMALL, decode, outcome, png, png_chunk, save

RGB = np.asarray(SMALL)
GRAY = np.asarray(SMALL.convert("L"))
ALPHA = np.broadcast_to(np.linspace(0, 255, 40).astype(np.uint8), GRAY.shape)


def tiff_of(values: NDArray[np.generic], photometric: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


def difference(data: bytes, expected: NDArray[np.generic]) -> float:
    """Mean difference of the decoded pixels from ``expected``, gray or RGB."""
    pixels = np.asarray(decode(data).image).astype(int)
    return float(np.abs(pixels - (expected if expected.ndim == 3 else expected[:, :, None])).mean())


# --- TIFF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}, {"compression": "deflate"}])
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_a_tiff_are_read_like_interleaved_samples(
    bits: int, layout: dict[str, object], byteorder: str
) -> None:
    values = RGB if bits == 8 else RGB.astype(np.uint16) * 257
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))

    data = tiff_of(planes, "rgb", planarconfig="separate", byteorder=byteorder, **layout)

    assert difference(data, RGB) < 0.01


def test_subsampled_colors_of_an_uncompressed_tiff_are_read() -> None:
    blocks = np.full((14, 20, 6), 128, np.uint8)  # four values of Y, Cb and Cr of each 2 x 2 pixels
    blocks[:, :, :4] = GRAY.reshape(14, 2, 20, 2).swapaxes(1, 2).reshape(14, 20, 4)
    data = tiff_of(np.full((28, 40, 3), 7, np.uint8), "rgb", extratags=[(530, 3, 2, (2, 2), True)])
    offset = data.index(b"\7" * 3360)
    data = data[:offset] + blocks.tobytes() + data[offset + blocks.size :]

    assert difference(with_tag(data, 262, 6), GRAY) < 2


@pytest.mark.parametrize("scale", [1, 257])
def test_a_color_map_may_hold_8_bit_values(scale: int) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)

    data = tiff_of(GRAY, "palette", colormap=colors * scale)

    assert difference(data, colors.T[GRAY].astype(int)) < 0.01


@pytest.mark.parametrize("kind", ["unassalpha", "unspecified"])
@pytest.mark.parametrize("color", [GRAY, RGB])
def test_the_first_extra_sample_is_alpha_unless_its_kind_says_otherwise(color: NDArray[np.uint8], kind: str) -> None:
    alpha = ALPHA[:, :, None] / 255
    expected = np.atleast_3d(color) * alpha + 255 * (1 - alpha)

    data = tiff_of(
        np.dstack([color, ALPHA]),
        "rgb" if color.ndim == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=[kind],
    )

    assert difference(data, expected) < 1


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_where_0_is_white_is_inverted(bits: int) -> None:
    values = GRAY if bits == 8 else GRAY.astype(np.uint16) * 257

    assert difference(tiff_of(values, "miniswhite"), 255 - GRAY.astype(int)) < 0.01


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF file with another value of a short tag."""
    changed = bytearray(data)
    directory = struct.unpack_from("<I", data, 4)[0]
    for entry in range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            struct.pack_into("<HIHH", changed, entry + 2, 3, 1, value, 0)
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff_of(RGB.astype(np.float32) / 255, "rgb"), "float samples"),
        (tiff_of(GRAY.astype(np.float16) / 255, "minisblack"), "float samples"),
        (tiff_of(GRAY.astype(np.int16), "minisblack"), "signed integer samples"),
        (tiff_of(GRAY.view(np.int8), "minisblack"), "signed integer samples"),
        (tiff_of(GRAY.astype(np.uint32), "minisblack"), "32-bit samples"),
        *((with_tag(tiff_of(GRAY, "minisblack"), 258, bits), f"{bits}-bit samples") for bits in (10, 12, 14)),
        (with_tag(tiff_of(GRAY, "minisblack"), 259, 34887), "compression 34887"),
        (tiff_of(RGB, "cielab"), "CIELAB"),
        (with_tag(tiff_of(GRAY, "minisblack"), 262, 32803), "raw sensor data"),
        (tiff_of(np.dstack([GRAY] * 5), "minisblack", planarconfig="contig"), "5 samples"),
        (tiff_of(np.stack([GRAY, ALPHA]), "minisblack", planarconfig="separate"), "separate planes"),
    ],
)  # fmt: skip
def test_other_kinds_of_tiff_are_refused_by_name(data: bytes, kind: str) -> None:
    with pytest.raises(
        UnsupportedImageFormat, match=rf"TIFF with .*{kind}.* is not supported\. Send TIFF with"
    ) as refusal:
        decode(data)

    assert kind in refusal.value.errors[0].value


def test_a_big_endian_bigtiff_is_refused_by_name() -> None:
    little, big = (tiff_of(GRAY, "minisblack", bigtiff=True, byteorder=order) for order in "<>")

    assert difference(little, GRAY) == 0
    assert "big-endian BigTIFF" in str(outcome(big))
    assert isinstance(outcome(big), UnsupportedImageFormat)


# --- GIF, BMP, AVIF --------------------------------------------------------------------------------------------------


def test_outside_its_first_frame_a_gif_is_white() -> None:
    data = bytearray(save(SMALL, "GIF"))
    struct.pack_into("<HH", data, 6, 60, 50)  # the screen
    frame = data.index(b",\0\0\0\0") + 1
    struct.pack_into("<HH", data, frame, 8, 4)
    expected = Image.new("RGB", (60, 50), "white")
    expected.paste(decode(SEEDS["gif"]).image, (8, 4))

    np.testing.assert_array_equal(np.asarray(decode(bytes(data)).image), np.asarray(expected))


def test_a_gif_with_an_empty_first_frame_is_white() -> None:
    data = bytearray(save(SMALL, "GIF"))
    frame = data.index(b",\0\0\0\0") + 5
    struct.pack_into("<H", data, frame, 0)

    assert np.asarray(decode(bytes(data)).image).min() == 255


def bmp(bits: int, masks: tuple[int, ...], values: NDArray[np.unsignedinteger], *, compression: int = 3) -> bytes:
    """A BMP file of bit fields, bottom up, with the header of Windows 3 or, if there is an alpha mask, of version 3."""
    height, width = values.shape
    header_bytes = 56 if len(masks) == 4 and compression == 3 else 40
    rows = np.zeros((height, (width * bits // 8 + 3) // 4 * 4), np.uint8)
    rows[:, : width * bits // 8] = values.astype(f"<u{bits // 8}")[::-1].copy().view(np.uint8).reshape(height, -1)
    offset = 14 + 40 + 4 * len(masks)
    header = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, bits, compression, rows.size, 0, 0, 0, 0)
    body = header + struct.pack(f"<{len(masks)}I", *masks) + rows.tobytes()
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, offset) + body


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x07E0, 0x001F)),
        (16, (0x7C00, 0x03E0, 0x001F)),
        (16, (0x0F00, 0x00F0, 0x000F)),
        (16, (0x0F00, 0x00F0, 0x000F, 0xF000)),
        (16, (0x7C00, 0x03E0, 0x001F, 0x8000)),
        (16, (0xF000, 0x0F00, 0x00F0, 0x000F)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    ],
)
def test_bit_fields_of_any_layout_are_read(bits: int, masks: tuple[int, ...]) -> None:
    channels = np.dstack([RGB, ALPHA])
    values = np.zeros(GRAY.shape, np.uint32)
    levels = np.full((*GRAY.shape, 4), 255.0)
    for index, mask in enumerate(masks):
        low = (mask & -mask).bit_length() - 1
        highest = mask >> low
        steps = np.round(channels[:, :, index] / 255 * highest).astype(np.uint32)
        values |= steps << low
        levels[:, :, index] = steps * 255 / highest
    alpha = levels[:, :, 3:] / 255

    expected = levels[:, :, :3] * alpha + 255 * (1 - alpha)

    for compression in (3, 6)[: 1 + (len(masks) == 4)]:
        assert difference(bmp(bits, masks, values, compression=compression), expected) < 1


def test_bit_fields_give_the_pixels_of_pillow() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for masks in ((0xF800, 0x07E0, 0x001F), (0x7C00, 0x03E0, 0x001F)):
        data = bmp(16, masks, values)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(decode(data).image), np.asarray(image.convert("RGB")))


def test_an_uncompressed_bmp_has_an_alpha_mask_in_a_header_of_version_4_only() -> None:
    values = (255 - ALPHA.astype(np.uint32)) << 24
    for header_bytes, expected in ((108, ALPHA), (56, np.zeros_like(ALPHA))):
        data = bytearray(bmp(32, (0, 0, 0, 0xFF000000), values))
        data[70:70] = bytes(header_bytes - 56)
        struct.pack_into("<II", data, 10, 14 + header_bytes, header_bytes)
        struct.pack_into("<I", data, 30, 0)

        assert difference(bytes(data), expected) < 1


def test_pixels_after_the_last_run_of_a_bmp_have_the_first_color() -> None:
    runs, palette = b"\2\1\0\0\1\1\0\1", bytes(4) + b"\xff\xff\xff\0"  # two pixels, end of line, one pixel, end
    header = struct.pack("<IiiHHIIiiII", 40, 3, 3, 1, 8, 1, len(runs), 0, 0, 2, 0)
    data = b"BM" + struct.pack("<IHHI", 62 + len(runs), 0, 0, 62) + header + palette + runs

    pixels = np.asarray(decode(data).image)[:, :, 0]

    np.testing.assert_array_equal(pixels, [[0, 0, 0], [255, 0, 0], [255, 255, 0]])
    assert "not enough image data" in str(outcome(data[:-2] + b"\1\1"))


def test_a_bmp_of_another_depth_is_refused_by_name() -> None:
    data = bytearray(SEEDS["bmp"])
    data[28] = 2

    assert "BMP of pixel depth (2)" in str(outcome(bytes(data)))
    assert isinstance(outcome(bytes(data)), UnsupportedImageFormat)


def test_a_bmp_of_bit_fields_that_is_cut_off_is_called_truncated() -> None:
    data = bmp(16, (0x0F00, 0x00F0, 0x000F), np.zeros((28, 40), np.uint16))

    assert "truncated" in str(outcome(data[:-200]))


def test_an_avif_with_a_minimized_header_is_called_avif() -> None:
    with pytest.raises(UnsupportedImageFormat, match="AVIF with a minimized header"):
        decode(b"\0\0\0\x10ftypmif3avif\0\0\x07\x83mini\x0c\x98\x80\xff\x01\xfe\x0a\x7e")


def test_an_avif_may_name_its_brand_among_the_compatible_ones() -> None:
    data = bytearray(SEEDS["avif"])
    data[8:12] = b"miaf"

    assert decode(bytes(data)).format == "AVIF"


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0\0\x02",
        b"\xff\xe0\0\x07JFIF\0",
        b"\xff\xe1\0\x08Exif\0\0",
        b"\xff\xe2\0\x0bMPF\0\0\0\0\0\0",
        b"\xff\xed\0\x16Photoshop 3.0\x008BIM\0\0\0",
        b"\xff\xee\0\x07Adobe",
        b"\xff\xfe\0\x02",
        b"\xff\xff\xff",
    ],
)
def test_no_metadata_segment_decides_whether_a_jpeg_opens(segment: bytes) -> None:
    data = SEEDS["jpeg"]
    without_jfif = data[:2] + segment + data[20:]

    for changed in (data[:2] + segment + data[2:], without_jfif):
        np.testing.assert_array_equal(np.asarray(decode(changed).image), np.asarray(decode(data).image))


@pytest.mark.parametrize(
    ("position", "value", "kind"),
    [(1, 0xC3, "lossless JPEG"), (4, 12, "JPEG with 12-bit samples"), (9, 2, "JPEG with 2 components")],
)
def test_other_kinds_of_jpeg_are_refused_by_name(position: int, value: int, kind: str) -> None:
    data = bytearray(SEEDS["jpeg"])
    data[data.index(b"\xff\xc0") + position] = value

    with pytest.raises(UnsupportedImageFormat, match=f"{kind} is not supported. Send"):
        decode(bytes(data))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_orientation_is_that_of_exif_alone(format_name: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "test"
    if format_name == "TIFF":
        data = tiff_of(RGB, "rgb", extratags=[(700, 1, len(xmp), xmp, True)])
    elif format_name == "PNG":
        data = png(40, 28, depth=8, colour=2, rows=b"".join(b"\0" + row.tobytes() for row in RGB),
                   extra=png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))  # fmt: skip
    else:
        data = save(SMALL, format_name, xmp=xmp, exif=exif)

    assert decode(data).original_size == SMALL.size


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", ["jpeg", "png", "webp", "avif", "bmp", "gif"])
def test_a_truncated_image_is_called_truncated(seed: str) -> None:
    assert "truncated" in str(outcome(SEEDS[seed][: len(SEEDS[seed]) * 2 // 3]))


def test_a_refusal_says_what_is_wrong_with_a_critical_chunk() -> None:
    data = bytearray(SEEDS["png-palette"])
    data[data.index(b"PLTE") + 5] ^= 1

    assert "bad header checksum in b'PLTE'" in str(outcome(bytes(data)))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\2" + bytes(9) + struct.pack("<HHBB", 4, 4, 24, 0) + bytes(48), "TGA"),
        (b"\0\1\1\0\0\0\1\x18" + bytes(4) + struct.pack("<HHBB", 4, 4, 8, 0) + bytes(784), "TGA"),
        (b"\0\0\2\0\1\0\x10\x10\0\0\0\0\0\0", "CUR"),
        (b"\n\5\1\x08" + bytes(60), "PCX"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"gimp xcf v011", "XCF"),
    ],
)
def test_other_formats_are_called_by_their_name(data: bytes, name: str) -> None:
    assert name in str(outcome(data))
    assert isinstance(outcome(data), UnsupportedImageFormat)
