"""How images become pixels where there is a choice, and the version of all preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREPROCESSING_VERSION: str = "2"
"""Part of every cache key. Increase it with any change that may change the pixels of some image."""

Color = Literal["srgb", "raw"]
JpegScale = Literal["auto", "exact"]


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """The defaults are those of the published evaluation.

    Attributes:
        color: ``srgb``: color profiles are converted to sRGB; ``raw``: values stay as they are stored.
        jpeg_scale: ``auto``: large JPEG images are decoded at a reduced scale; ``exact``: never.
    """

    color: Color = "raw"
    jpeg_scale: JpegScale = "exact"

    @property
    def version(self) -> str:
        """The preprocessing version, then ``c`` for ``srgb`` and ``s`` for ``auto``."""
        return PREPROCESSING_VERSION + "c" * (self.color == "srgb") + "s" * (self.jpeg_scale == "auto")

    def revision_of(self, revision: str) -> str:
        """A tokenizer's revision with this version in place of the published preprocessing's."""
        return revision.replace(f"-p{PREPROCESSING_VERSION}", f"-p{self.version}", 1)


PUBLISHED = PreprocessingOptions()
