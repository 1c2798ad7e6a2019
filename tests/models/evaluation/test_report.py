"""What is written of an evaluation can be read: by programs, by people, and by the ADM evaluator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.evaluation.contact_sheet import Row, contact_sheet
from models.evaluation.generation import Comparison, Generation, NearestPhotographs, Samples
from models.evaluation.published import InceptionFigures
from models.evaluation.reconstruction import CodecFigures, CodeUsage, Reconstruction
from models.evaluation.report import Report, write_images, write_report


def codec(name: str, max_bytes: int, distance: float, *, tokens: int | None = None) -> CodecFigures:
    return CodecFigures(
        name=name,
        tokens=tokens,
        mean_bytes=max_bytes - 0.5,
        max_bytes=max_bytes,
        psnr=20.0,
        ssim=0.5,
        perceptual_distance=distance,
        frechet_distance=100.0,
        kernel_distance=0.01,
        class_agreement=float("nan"),
        class_agreement_ratio=float("nan"),
        seams=1.01,
    )


@pytest.fixture(scope="module")
def report(crops: np.ndarray) -> Report:
    pair = Comparison.of(1.0, 0.0)
    figures = (codec("titok", 48, 4.0, tokens=32), codec("grid", 48, 8.0), codec("webp", 400, 2.0))
    return Report(
        subject={"tokenizer": "titok"},
        data={"image_size": 64},
        reconstruction=Reconstruction(
            images=16,
            classes=0,
            classified=0,
            original_class_agreement=float("nan"),
            codecs=figures,
            codes=CodeUsage(used=60, codebook_size=64, entropy_bits=5.5),
            examples=dict.fromkeys(("original", "titok", "grid", "webp"), crops[:3]),
            reconstructions=crops[:5],
        ),
        generation=Generation(
            images=16,
            classes=4,
            real_images=16,
            preset="demo",
            frechet_distance=pair,
            kernel_distance=pair,
            class_agreement=pair,
            diversity=pair,
            identical_pairs=0,
            nearest=NearestPhotographs(
                median_distance=pair,
                smallest_distance=pair,
                smallest_rmse=pair,
                mean_shared_tokens=None,
                most_shared_tokens=None,
                rows=torch.arange(16),
                distances=torch.linspace(1, 0, 16),
            ),
        ),
        samples=Samples(images=crops, tokens=torch.zeros(16, 1), labels=torch.arange(16) // 4),
        published={
            "reconstruction": InceptionFigures(
                images=16, references=16, fid=2.5, inception_score=9.0, precision=float("nan"), recall=0.6
            )
        },
        class_names=("pets/cat", "pets/dog", "sea/fish", "sea/eel"),
        originals=crops,
        training_images=crops[::-1],
    )


def test_the_document_is_json_with_null_for_what_is_no_number(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    document = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert document["reconstruction"]["codecs"][0]["class_agreement"] is None
    assert document["reconstruction"]["codecs"][0]["psnr"] == 20.0
    assert document["reconstruction"]["best_placeholder"]["perceptual_distance_ratio"] == 0.5
    assert document["generation"]["diversity"] == {"generated": 1.0, "real": 0.0, "ratio": None}
    assert document["published"]["reconstruction"]["fid"] == 2.5
    assert not {"examples", "samples", "rows"} & set(json.dumps(document).split('"'))


def test_the_table_has_a_row_a_codec_and_says_what_the_best_placeholder_is(report: Report) -> None:
    text = report.to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "| webp | 400 (mean) | 20.00 | 0.500 | 2.000 | 100.0 | 10.00 | - | - | 1.01 |" in lines
    assert "0.50 of that of the best placeholder of at most as many bytes, grid" in text
    assert "60 of 64 codes were used, with 5.50 bits each" in text
    assert "| reconstruction | 16 | 2.50 | 9.00 | - | 0.600 |" in lines
    assert "shared" not in text


def test_a_report_without_a_generator_has_no_pictures_of_one(report: Report, tmp_path: Path) -> None:
    alone = dataclasses.replace(report, generation=None, samples=None, published={})
    names = [path.name for path in write_report(alone, tmp_path)]
    assert names == ["figures.json", "figures.md", "reconstruction.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert "Generation" not in alone.to_markdown()


def test_a_report_of_a_generator_alone_has_its_images_and_published_figures(report: Report, tmp_path: Path) -> None:
    alone = dataclasses.replace(report, reconstruction=None, generation=None, originals=None, training_images=None)
    names = [path.name for path in write_report(alone, tmp_path)]
    assert names == ["figures.json", "figures.md", "generated.png"]
    assert [path.name for path in write_images(alone, tmp_path)] == ["generated.npz"]
    assert "Published protocol" in alone.to_markdown()


def test_the_closest_pairs_come_first_beside_their_photographs(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "nearest.png"))
    # Image 15 is the closest; as the training images are turned round, its photograph is the first of the crops.
    pair = [Image.fromarray(i).resize((128, 128), Image.Resampling.LANCZOS) for i in report.originals[[15, 0]]]
    places = [
        (top, left)
        for top in range(30, 70)
        for left in range(sheet.shape[1] - 2 * 128 - 6)
        if all(
            np.array_equal(sheet[top : top + 128, x : x + 128], tile)
            for x, tile in zip((left, left + 134), map(np.asarray, pair), strict=True)
        )
    ]
    assert len(places) == 1


def test_images_are_written_as_the_adm_evaluator_reads_them(report: Report, tmp_path: Path) -> None:
    written = write_images(report, tmp_path)
    assert [path.name for path in written] == ["originals.npz", "reconstructions.npz", "generated.npz"]
    with np.load(tmp_path / "reconstructions.npz") as archive:
        assert np.array_equal(archive["arr_0"], report.reconstruction.reconstructions)
        assert archive["arr_0"].dtype == np.uint8


def test_a_sheet_has_its_images_in_rows_and_columns_under_their_headings() -> None:
    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(contact_sheet([Row(images=[red, blue], label="a row")] * 3, ["red", "blue"], tile=32))
    for colour, column in (((255, 0, 0), 0), ((0, 0, 255), 1)):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        assert len(rows) == 3 * 32 * 32
        assert columns.max() - columns.min() == 31
        if column:
            assert columns.min() > np.nonzero((sheet == (255, 0, 0)).all(axis=2))[1].max()


def test_blocks_stand_side_by_side() -> None:
    rows = [Row(images=[np.zeros((8, 8, 3), np.uint8)])] * 5
    tall, wide = (contact_sheet(rows, tile=32, blocks=blocks) for blocks in (1, 2))
    assert wide.width > tall.width
    assert wide.height < tall.height
    assert (np.asarray(wide) == 0).sum() == (np.asarray(tall) == 0).sum()


def test_a_wide_heading_is_wrapped() -> None:
    rows = [Row(images=[np.zeros((8, 8, 3), np.uint8)])]
    one, two = (contact_sheet(rows, [heading], tile=64) for heading in ("photograph", "nearest photograph"))
    assert two.height > one.height
    assert two.width == one.width
