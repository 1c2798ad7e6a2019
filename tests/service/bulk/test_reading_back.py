"""Outputs of ``titok tokenize``, opened by the reader for training and decoding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from models.data.token_folder import TokenFolder, TokenizerIdentity, open_tokens
from models.data.token_shards import FORMATS, TokenShape
from models.errors import DataError
from service.bulk.crops import Crops
from tests.service.bulk.data_sets import CLASSES, broken_images, folder_of, images, job, rows_of, run

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module", params=[Crops(), Crops("ten")], ids=["centre", "ten"])
def crops(request: pytest.FixtureRequest) -> Crops:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("set"), broken_images())


@pytest.fixture(scope="module")
def lines(source: Path, crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run(job(source, folder := tmp_path_factory.mktemp("lines"), crops=crops))
    return rows_of(folder)


def shown(rows: Any) -> list[dict[str, Any]]:
    return [{"key": key, "view": view, "class_id": label, "tokens": ids.tolist()} for key, view, label, ids in rows]


def tokenized(source: Path, folder: Path, **changes: Any) -> TokenFolder:
    if changes.get("format") == "parquet":
        pytest.importorskip("pyarrow")
    run(job(source, folder, **changes))
    return open_tokens(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_it_was_written(
    name: str, crops: Crops, source: Path, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tokenized(source, tmp_path, format=name, crops=crops)
    folder.verify()
    assert shown(folder.rows()) == lines
    assert (folder.format, folder.shape, folder.classes) == (name, TokenShape(16, crops.count, 64), CLASSES)

    counts = [shard.count() for shard in folder.shards]
    assert sum(counts) == len(lines)
    first = lines[: counts[0]]
    for start in (0, 1, counts[0] - 1, counts[0]):
        assert shown(folder.shards[0].rows(start)) == first[start:]


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_without_images_is_read(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "source", [b""] * 6)
    folder = tokenized(tmp_path / "source", tmp_path / "tokens", format=name)
    assert [shard.count() for shard in folder.shards] == [0, 0]
    assert list(folder.rows()) == []


def test_keys_are_those_before_they_were_escaped_for_webdataset(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("v1.5 50%.jpg", "%2E.jpg"):
        (tmp_path / "source" / name).write_bytes(images(1)[0])
    folder = tokenized(tmp_path / "source", tmp_path / "tokens", format="webdataset")
    assert [row.key for row in folder.rows()] == ["%2E", "v1.5 50%"]


def test_tokens_of_another_tokenizer_are_refused_with_both_names(source: Path, tmp_path: Path) -> None:
    folder = tokenized(source, tmp_path)
    folder.check_tokenizer(TokenizerIdentity("copy", "0" * 64, "any"))
    with pytest.raises(DataError, match=r"made with tiny \(0{12}\), not with titok-l-32 \(1{12}\)"):
        folder.check_tokenizer(TokenizerIdentity("titok-l-32", "1" * 64, "any"))


def test_files_that_differ_from_the_manifest_are_refused(source: Path, tmp_path: Path) -> None:
    tokenized(source, tmp_path, format="npy")
    file = tmp_path / "tokens-000001.npy"
    written = file.read_bytes()

    file.write_bytes(written[:-1] + b"x")
    with pytest.raises(DataError, match=r"tokens-000001.npy has changed"):
        open_tokens(tmp_path).verify()
    file.write_bytes(written[:-1])
    with pytest.raises(DataError, match=rf"has {len(written) - 1} bytes; manifest.json says {len(written)}"):
        open_tokens(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*tokens-000001.npy, which manifest.json names"):
        open_tokens(tmp_path)


def test_an_output_without_its_manifest_is_read(source: Path, tmp_path: Path) -> None:
    expected = shown(tokenized(source, tmp_path, format="npy").rows())
    (tmp_path / "manifest.json").unlink()
    folder = open_tokens(tmp_path)
    assert shown(folder.rows()) == expected
    assert folder.tokenizer is None


def test_the_training_loop_of_the_documentation(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", (DOCS / "tokens.md").read_text(), flags=re.DOTALL)
    assert len(loop.splitlines()) <= 20
    tokenized(source, tmp_path / "tokens", format="npy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS / "examples")
    exec(loop.replace("num_workers=1", "num_workers=0").replace("range(10)", "range(2)"), {})  # noqa: S102
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[1] < losses[0]
