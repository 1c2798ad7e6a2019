"""Conversion of color profiles to sRGB."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from models.preprocess import eval_crop
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from service.imaging.decoding import DecodedImage, decode_image
from service.imaging.errors import UnsupportedImageFormat
from service.imaging.icc import SRGB_CHROMATICITIES, SRGB_CURVE, Chromaticities, cicp_profile, matrix_profile
from tests.service.imaging.image_files import LIMITS, SMALL, photograph, png_chunk, save

SRGB = PreprocessingOptions(color="srgb")
PHOTOGRAPH = photograph("coffee", 160, 120)
D65 = SRGB_CHROMATICITIES[:2]
ADOBE_RGB: Chromaticities = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PROPHOTO: Chromaticities = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)


def profile_bytes(profile: bytes | None) -> bytes:
    assert profile is not None
    return profile


PROFILES = {
    "Display P3": profile_bytes(cicp_profile(12, 13)),
    "Adobe RGB": profile_bytes(matrix_profile(ADOBE_RGB, (2.2, 1.0, 0.0, 0.0, 0.0))),
    "ProPhoto": profile_bytes(matrix_profile(PROPHOTO, (1.8, 1.0, 0.0, 0.0, 0.0))),
}


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile(grid: int = 2) -> bytes:
    """A CMYK profile with a table of ``grid`` steps of each ink (ICC.1, 10.11); 2: full inks only."""
    c, m, y, k = np.meshgrid(*[np.linspace(0, 1, grid)] * 4, indexing="ij")
    corners = np.stack([(1 - ink) * (1 - k) * 255 for ink in (c, m, y)], axis=-1).reshape(-1, 3)
    colors = Image.fromarray(corners[None].round().astype(np.uint8))
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        "RGB",
        "LAB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    lab = np.asarray(ImageCms.applyTransform(colors, to_lab)).astype(np.uint8)
    lab = lab ^ np.array([0, 128, 128], np.uint8) if lab[0, 0, 1] < 64 else lab
    ramp = bytes(range(256))
    matrix = np.eye(3).reshape(-1) * 65536
    table = (
        b"mft1\0\0\0\0\4\3" + bytes([grid, 0]) + matrix.astype(">i4").tobytes() + ramp * 4 + lab.tobytes() + ramp * 3
    )
    offset = 128 + 4 + 12
    header = struct.pack(">I4xI4s4s4s12x4s", offset + len(table), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    white = np.round(np.array([0.9642, 1.0, 0.8249]) * 65536).astype(">i4").tobytes()
    header = (header.ljust(68, b"\0") + white).ljust(128, b"\0")
    return header + struct.pack(">I4sII", 1, b"A2B0", offset, len(table)) + table


def stored_in(image: Image.Image, profile: bytes) -> Image.Image:
    """The values that show an sRGB image when they are read by a profile."""
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        "RGB",
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    stored = ImageCms.applyTransform(image, transform)
    assert stored is not None
    return stored


def decode(data: bytes, options: PreprocessingOptions = SRGB, size: int | None = None) -> DecodedImage:
    return decode_image(data, limits=LIMITS, options=options, size=size)


def pixels(data: bytes, options: PreprocessingOptions = SRGB) -> NDArray[np.int64]:
    return np.asarray(decode(data, options).image).astype(np.int64)


def difference(data: bytes, image: Image.Image) -> float:
    return float(np.abs(pixels(data) - np.asarray(image)).mean())


@pytest.mark.parametrize(("format_name", "options"), [
    ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 98, "subsampling": 0}),
    ("AVIF", {"quality": 98, "speed": 10, "subsampling": "4:4:4"}),
])  # fmt: skip
@pytest.mark.parametrize("name", PROFILES)
def test_a_photograph_stored_in_another_color_space_has_the_colors_of_the_original(
    name: str, format_name: str, options: dict[str, object]
) -> None:
    profile = PROFILES[name]

    data = save(stored_in(PHOTOGRAPH, profile), format_name, icc_profile=profile, **options)

    assert difference(data, PHOTOGRAPH) < 2.5
    assert np.abs(pixels(data, PUBLISHED) - np.asarray(PHOTOGRAPH)).mean() > 2


@pytest.mark.parametrize("profile", [
    srgb_profile(), profile_bytes(matrix_profile(SRGB_CHROMATICITIES, SRGB_CURVE)), b"", b"no profile", srgb_profile()[:300],
    PROFILES["Display P3"].replace(b"RGB XYZ ", b"GRAYXYZ "), PROFILES["Display P3"].replace(b"RGB XYZ ", b"CMYKLab "),
], ids=["LittleCMS", "matrix", "empty", "text", "cut off", "gray", "CMYK"])  # fmt: skip
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_without_a_profile_of_another_space_the_pixels_are_the_published_ones(format_name: str, profile: bytes) -> None:
    data = save(SMALL, format_name, icc_profile=profile)

    assert (pixels(data) == pixels(data, PUBLISHED)).all()


def test_a_broken_profile_is_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="service.imaging.color"):
        decode(save(SMALL, "JPEG", icc_profile=b"a broken profile of this test"))

    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_cmyk_is_converted_by_its_profile() -> None:
    colors = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (255, 255, 0, 0)]
    expected = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0), (0, 0, 255)]
    for color, seen in zip(colors, expected, strict=True):
        image = Image.new("CMYK", (16, 16), color)
        for format_name, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
            data = save(image, format_name, icc_profile=cmyk_profile(), **options)
            assert difference(data, Image.new("RGB", (16, 16), seen)) < 6, (color, format_name)


def test_gray_is_converted_by_a_gray_or_an_rgb_profile() -> None:
    gray = SMALL.convert("L")
    linear = profile_bytes(matrix_profile(SRGB_CHROMATICITIES, (1.0, 1.0, 0.0, 0.0, 0.0)))
    expected = 255 * np.where((v := np.asarray(gray) / 255) <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)
    for image in (gray, gray.convert("LA"), Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)):
        assert np.abs(pixels(save(image, "PNG", icc_profile=linear))[:, :, 0] - expected).mean() < 1


def test_transparency_and_orientation_survive_conversion() -> None:
    profile = PROFILES["Adobe RGB"]
    stored = stored_in(SMALL, profile)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    alpha = Image.new("L", SMALL.size, 255)
    alpha.paste(0, (0, 0, 10, 28))
    stored.putalpha(alpha)

    decoded = decode(save(stored, "PNG", icc_profile=profile, exif=exif))

    expected = SMALL.copy()
    expected.paste("white", (0, 0, 10, 28))
    turned = np.rot90(np.asarray(expected), -1).astype(int)
    assert np.abs(np.asarray(decoded.image) - turned).mean() < 2
    assert decoded.original_size == (28, 40)


def test_a_large_image_is_reduced_before_its_colors_are_converted() -> None:
    profile = PROFILES["Display P3"]
    large = photograph("coffee", 1600, 1201)

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    decoded = decode(save(stored_in(large, profile), "PNG", icc_profile=profile, exif=exif), size=32)

    assert (decoded.image.size, decoded.original_size) == ((101, 134), (1201, 1600))
    expected = eval_crop(large.transpose(Image.Transpose.ROTATE_270), 32).astype(int)
    assert np.abs(decoded.crop(32) - expected).mean() < 2


# --- PNG chunks ------------------------------------------------------------------------------------------------------


def with_chunks(image: Image.Image, *chunks: bytes) -> bytes:
    data = save(image, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def chromaticities(values: Chromaticities) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def gamma(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(100_000 * value)))


ICC_P3 = png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(PROFILES["Display P3"]))
NAMELESS_P3 = png_chunk(b"iCCP", b"\0\0" + zlib.compress(PROFILES["Display P3"]))
CICP_P3, CICP_SRGB = png_chunk(b"cICP", b"\x0c\x0d\0\1"), png_chunk(b"cICP", b"\1\x0d\0\1")
S_RGB = png_chunk(b"sRGB", b"\0")


@pytest.mark.parametrize(("name", "chunks"), [
    ("Display P3", [CICP_P3]), ("Display P3", [ICC_P3]), ("Display P3", [CICP_P3, S_RGB]), ("Display P3", [ICC_P3, S_RGB]),
    ("Adobe RGB", [gamma(1 / 2.2), chromaticities(ADOBE_RGB)]),
    ("ProPhoto", [chromaticities(PROPHOTO), gamma(1 / 1.8)]),
    ("Display P3", [png_chunk(b"cICP", b"\1\x0d\0\0"), ICC_P3]), ("Display P3", [png_chunk(b"cICP", b"\1\x0d\5\1"), ICC_P3]),
    ("Display P3", [png_chunk(b"cICP", b"\1\xc8\0\1"), ICC_P3]), ("Display P3", [png_chunk(b"cICP", b"\2\x0d\0\1"), ICC_P3]),
    ("ProPhoto", [png_chunk(b"sRGB", b"\7"), NAMELESS_P3, chromaticities(PROPHOTO), gamma(1 / 1.8)]),
])  # fmt: skip
def test_chunks_of_a_png_describe_its_colors(name: str, chunks: list[bytes]) -> None:
    tolerance = 3 if name == "Adobe RGB" else 1  # in a PNG the gamma 1 / 2.2 stands for the curve of sRGB

    assert difference(with_chunks(stored_in(PHOTOGRAPH, PROFILES[name]), *chunks), PHOTOGRAPH) < tolerance


@pytest.mark.parametrize("chunks", [
    [S_RGB], [CICP_SRGB], [CICP_SRGB, ICC_P3], [gamma(0.45455), chromaticities(SRGB_CHROMATICITIES)], [gamma(0.45455)],
    [S_RGB, gamma(1.0), chromaticities(PROPHOTO)], [chromaticities((0.0,) * 8)], [gamma(0.0)],
    [chromaticities((0.3, 0.3) * 4)], [chromaticities(PROPHOTO)], [NAMELESS_P3], [png_chunk(b"gAMA", bytes(3) + b"\1\0")],
])  # fmt: skip
def test_chunks_that_say_srgb_or_nothing_leave_the_pixels_of_a_png(chunks: list[bytes]) -> None:
    data = with_chunks(SMALL, *chunks)

    assert (pixels(data) == np.asarray(SMALL)).all()


def test_a_gamma_alone_changes_the_curve() -> None:
    linear = with_chunks(Image.new("RGB", (2, 2), (55, 55, 55)), gamma(1.0))

    assert decode(linear).image.getpixel((0, 0)) == pytest.approx((128, 128, 128), abs=1)


def test_a_gamma_beyond_the_range_of_profiles_makes_all_but_white_black() -> None:
    assert decode(with_chunks(Image.new("RGB", (2, 2), (55, 255, 55)), gamma(0.00001))).image.getpixel((0, 0)) == (
        0,
        255,
        0,
    )


def test_the_curve_of_video_is_that_of_a_screen_in_a_png() -> None:
    gray = with_chunks(Image.new("RGB", (2, 2), (55, 55, 55)), png_chunk(b"cICP", b"\1\1\0\1"))

    linear = (55 / 255) ** 2.4
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert decode(gray).image.getpixel((0, 0)) == pytest.approx((expected,) * 3, abs=1)


def test_a_profile_in_several_segments_of_a_jpeg_counts_if_all_are_there() -> None:
    profile = PROFILES["Display P3"]
    data = save(stored_in(PHOTOGRAPH, profile), "JPEG", quality=98, subsampling=0)
    halves = (profile[:200], profile[200:])
    first, second = (
        b"\xff\xe2" + struct.pack(">H", len(half) + 16) + b"ICC_PROFILE\0" + bytes([number, 2]) + half
        for number, half in enumerate(halves, 1)
    )

    for segments in (first + second, second + first, first + second + second):
        assert difference(data[:2] + segments + data[2:], PHOTOGRAPH) < 2.5
    for segments in (first, second, first + first):
        assert (pixels(data[:2] + segments + data[2:]) == pixels(data)).all()


def test_a_bmp_of_version_5_may_contain_a_profile() -> None:
    profile = PROFILES["Display P3"]
    data = bytearray(save(stored_in(PHOTOGRAPH, profile), "BMP"))
    data[54:54] = bytes(84)
    struct.pack_into("<II", data, 10, 138, 124)
    struct.pack_into("<4s", data, 70, b"DEBM")
    struct.pack_into("<II", data, 126, len(data) - 14, len(profile))

    assert difference(bytes(data) + profile, PHOTOGRAPH) < 1


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_by_name(transfer: int, name: str) -> None:
    avif = save(SMALL, "AVIF", speed=10)
    box = avif.index(b"colrnclx") + 8
    avif = avif[:box] + struct.pack(">HH", 9, transfer) + avif[box + 4 :]
    png = with_chunks(SMALL, png_chunk(b"cICP", bytes([9, transfer, 0, 1])))

    for data, format_name in ((avif, "AVIF"), (png, "PNG")):
        with pytest.raises(UnsupportedImageFormat, match=rf"{format_name} with high dynamic range \({name}\)"):
            decode(data)
        assert decode(data, PUBLISHED).original_size == SMALL.size


def test_an_avif_may_name_its_color_space_by_code_points() -> None:
    profile = PROFILES["Display P3"]
    data = save(stored_in(PHOTOGRAPH, profile), "AVIF", quality=98, speed=10, subsampling="4:4:4")
    box = data.index(b"colrnclx") + 8

    assert difference(data[:box] + struct.pack(">HH", 12, 13) + data[box + 4 :], PHOTOGRAPH) < 2


def test_the_version_and_the_revision_say_how_images_are_decoded() -> None:
    versions = {
        PreprocessingOptions(color=color, jpeg_scale=scale).version
        for color in ("srgb", "raw")
        for scale in ("auto", "exact")
    }
    version = PUBLISHED.version

    assert versions == {version, f"{version}c", f"{version}s", f"{version}cs"}
    assert SRGB.revision_of(f"abc-p{version}-bf16") == f"abc-p{version}c-bf16"
    assert PUBLISHED.revision_of(f"abc-p{version}") == f"abc-p{version}"
