"""HEIC, the format of photographs on iPhones, if the package pi-heif (libheif and libde265, decoder only) is installed."""

from __future__ import annotations

from PIL import ImageFile

HEIF_CLASS: type[ImageFile.ImageFile] | None = None
"""Pillow's class for HEIC files. It turns images by ``irot`` and ``imir``, and sets the orientation in EXIF to upright."""

try:
    from pi_heif import HeifImageFile, options
except ImportError:
    pass
else:
    HEIF_CLASS = HeifImageFile
    options.DECODE_THREADS = 1  # images are decoded in parallel
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
