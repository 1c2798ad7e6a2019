"""Quality by length: which codecs are measured, the table, the plot and the contact sheet."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from models.codes.code_format import CodeError
from models.evaluation.lengths import PrefixCodec, by_length, codecs_by_length, length_table, plot_by_bytes
from models.evaluation.lite0 import Lite0
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.progress import no_progress
from models.evaluation.reconstruction import Reconstruction, TokenizerCodec, evaluate_reconstruction
from models.evaluation.report import reconstruction_sheet
from models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def figures(lite0: Lite0, crops: np.ndarray, prefix_tokenizer: Tokenizer) -> Reconstruction:
    whole = TokenizerCodec(prefix_tokenizer)
    codecs = [whole, *codecs_by_length(whole, [8, 16, 4], crops, track=no_progress)]
    return evaluate_reconstruction(
        crops,
        np.zeros(len(crops), np.int64),
        codecs=codecs,
        network=lite0,
        references=ReferenceSet(torch.zeros(1, 1280), torch.ones(1, dtype=torch.int64)),
        patch_size=16,
        examples=[0, 3],
    )


def test_each_length_is_measured_beside_the_placeholders_of_its_bytes(figures: Reconstruction) -> None:
    assert [(codec.tokens, codec.max_bytes) for codec in by_length(figures)] == [(4, 3), (8, 6), (16, 12)]
    others = {codec.name for codec in figures.codecs if codec.tokens is None}
    assert {"1x1 RGB", "PCA, 3 components", "PCA, 6 components", "BlurHash, 6 bytes", "ThumbHash"} <= others


def test_a_length_has_the_pixels_of_the_first_tokens(crops: np.ndarray, prefix_tokenizer: Tokenizer) -> None:
    whole = TokenizerCodec(prefix_tokenizer)
    whole(crops)
    decoded = PrefixCodec(whole, 4)(crops)
    expected = prefix_tokenizer.decode(prefix_tokenizer.encode(crops)[:, :4]).numpy()
    assert (decoded.images == expected).all()
    assert (PrefixCodec(TokenizerCodec(prefix_tokenizer), 4)(crops).images == expected).all()


def test_the_table_names_the_best_placeholder_of_each_size(figures: Reconstruction) -> None:
    header, rows = length_table(figures)
    assert [row[:2] for row in rows] == [["4", "3"], ["8", "6"], ["16", "12"]]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][5] in ("1x1 RGB", "PCA, 3 components")


def test_the_plot_has_a_line_for_each_kind_of_codec_of_at_most_as_many_bytes(figures: Reconstruction) -> None:
    root = ElementTree.fromstring(plot_by_bytes(figures))  # noqa: S314  written here
    tag = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.findall(f"{tag}text")]
    assert texts[-4:] == ["tiny", "RGB", "PCA", "BlurHash"]  # ThumbHash needs more
    # Without known classes there is no class agreement to draw.
    assert len(root.findall(f"{tag}path")) == 2 * 4
    assert len(root.findall(f"{tag}circle")) == 2 * sum(codec.max_bytes <= 12 for codec in figures.codecs)


def test_the_contact_sheet_shows_the_original_the_lengths_and_thumbhash(figures: Reconstruction) -> None:
    assert reconstruction_sheet(figures).width == 5 * 128 + 4 * 6 + 24


def test_a_tokenizer_that_is_not_prefix_decodable_has_one_length(tokenizer: Tokenizer) -> None:
    with pytest.raises(CodeError, match="not prefix-decodable"):
        PrefixCodec(TokenizerCodec(tokenizer), 4)
