import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.datasets import InMemoryDataset, StreamingDataset, open_dataset
from models.errors import DataError

AddMember = Callable[[tarfile.TarFile, str, bytes], None]
HELD, STREAMED = 2**30, 0


def opened(folder: Path, limit: int) -> InMemoryDataset | StreamingDataset:
    return open_dataset(folder, "train", size=16, cache=folder.parent / "cache", memory_limit_bytes=limit)


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_without_classes_json_class_numbers_are_the_names(plain_shards: Path, limit: int) -> None:
    dataset = opened(plain_shards, limit)
    assert dataset.names == ("0", "1", "2")
    assert dataset.labels.tolist() == [index % 3 for index in range(300)]


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("content", "named"),
    [(b"cat", "invalid literal"), (b"", "invalid literal"), (b"-1", "class -1 is not"), (b"9" * 9, "class 999999999")],
)
def test_an_invalid_class_number_is_logged_and_skipped(
    plain_shards: Path,
    add_member: AddMember,
    encoded_image: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    limit: int,
    content: bytes,
    named: str,
) -> None:
    with tarfile.open(plain_shards / "train-1.tar", "a") as shard:
        add_member(shard, "x.png", encoded_image(0))
        add_member(shard, "x.cls", content)
    assert len(opened(plain_shards, limit)) == 300
    assert "skipped train-1.tar/x: " in caplog.text
    assert named in caplog.text


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_a_class_missing_from_classes_json_is_an_error(plain_shards: Path, limit: int) -> None:
    (plain_shards / "classes.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
    with pytest.raises(DataError, match=r"100 of 300 samples .* class 2 is not in classes.json, which has 0 to 1"):
        opened(plain_shards, limit)


@pytest.mark.parametrize("text", ["[1", '{"1": "cat"}', '{"0": "cat", "2": "dog"}', "3"])
def test_an_invalid_classes_json_is_an_error(plain_shards: Path, text: str) -> None:
    (plain_shards / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes.json is not"):
        opened(plain_shards, HELD)


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) * 9 // 10 // 512 * 512 + 100],
        lambda content: content[: len(content) * 9 // 10] + b"\xff" * 2048 + content[len(content) * 9 // 10 + 2048 :],
        lambda content: content[: -(-len(content.rstrip(b"\0")) // 512) * 512],
        lambda _: b"no archive",
        lambda _: b"",
    ],
    ids=["cut off", "overwritten in the middle", "without its end mark", "no archive", "empty"],
)
def test_a_damaged_shard_is_one_bad_sample_and_earlier_files_count(
    plain_shards: Path, caplog: pytest.LogCaptureFixture, limit: int, damage: Callable[[bytes], bytes]
) -> None:
    content = damage((plain_shards / "train-1.tar").read_bytes())
    (plain_shards / "train-2.tar").write_bytes(content)
    dataset = opened(plain_shards, limit)
    assert 300 <= len(dataset) <= 450
    assert caplog.text.count("skipped train-2.tar:") == 1


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_a_truncated_image_does_not_count(
    plain_shards: Path, add_member: AddMember, encoded_image: Callable[..., bytes], limit: int
) -> None:
    file = plain_shards / "train-2.tar"
    with tarfile.open(file, "w") as shard:
        for name, content in (("0.cls", b"0"), ("0.png", encoded_image(0)), ("1.cls", b"0"), ("1.png", bytes(4096))):
            add_member(shard, name, content)
    file.write_bytes(file.read_bytes()[: 6 * 512 + 1024 + 2000])
    assert len(opened(plain_shards, limit)) == 301


@pytest.mark.parametrize("most", [None, 200], ids=["held", "streamed"])
def test_a_damaged_shard_is_logged_once(plain_shards: Path, caplog: pytest.LogCaptureFixture, most: int | None) -> None:
    (plain_shards / "train-0a.tar").write_bytes(b"no archive")
    opened(plain_shards, HELD if most is None else most * 16 * 16 * 3)
    assert caplog.text.count("skipped train-0a.tar") == 1


def test_an_unreadable_shard_is_a_bad_sample(plain_shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plain_shards / "train-2.tar").symlink_to("nowhere.tar")
    assert len(opened(plain_shards, HELD)) == 300
    assert "skipped train-2.tar: " in caplog.text


def test_a_file_of_a_name_that_occurred_before_begins_a_new_sample(
    plain_shards: Path, add_member: AddMember, encoded_image: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(plain_shards / "train-1.tar", "a") as shard:
        for name, content in (("x.png", encoded_image(0)), ("x.png", encoded_image(1)), ("x.cls", b"0")):
            add_member(shard, name, content)
    assert len(opened(plain_shards, HELD)) == 301
    assert "skipped train-1.tar/x: not an image with a class" in caplog.text


def test_compressed_shards_above_the_memory_limit_are_unpacked_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, streamed = opened(shards, HELD), opened(shards, STREAMED)
    monkeypatch.setattr("models.data.shards.decompressed", None)
    again = opened(shards, STREAMED)
    rows = np.array([0, 149, 150, 299])
    assert torch.equal(streamed.batch(rows), held.batch(rows))
    assert torch.equal(again.batch(rows), held.batch(rows))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("suffix", ["unpacked", "npz"])
def test_no_space_for_unpacked_shards_or_the_index_is_an_error(shards: Path, suffix: str) -> None:
    opened(shards, STREAMED)
    cache = shards.parent / "cache"
    (file, *_) = cache.glob(f"*.{suffix}")
    for old in cache.iterdir():
        old.unlink()
    (cache / f"{file.name}.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot write to .*: No space left on device; choose another cache folder"):
        opened(shards, STREAMED)


def test_hidden_files_belong_to_no_sample(plain_shards: Path, add_member: AddMember) -> None:
    with tarfile.open(plain_shards / "train-1.tar", "a") as shard:
        for number in range(20):
            add_member(shard, f"._{number:03d}.png", b"a system's notes")
    assert len(opened(plain_shards, HELD)) == 300
