import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.data.bad_samples import BadSamples
from models.data.datasets import InMemoryDataset, StreamingDataset, class_names, open_dataset
from models.data.shards import WebDatasetShards
from models.errors import DataError

AddMember = Callable[[tarfile.TarFile, str, bytes], None]
HELD, STREAMED = 2**30, 0


def opened(folder: Path, limit: int) -> InMemoryDataset | StreamingDataset:
    return open_dataset(folder, "train", size=16, cache=folder.parent / "cache", memory_limit_bytes=limit)


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_without_a_list_the_numbers_of_the_classes_are_their_names(plain_shards: Path, limit: int) -> None:
    photographs = opened(plain_shards, limit)
    assert photographs.names == ("0", "1", "2")
    assert photographs.labels.tolist() == [index % 3 for index in range(300)]
    with pytest.raises(DataError, match=r"no classes.json in"):
        class_names(plain_shards)


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
@pytest.mark.parametrize(
    ("content", "named"),
    [(b"cat", "invalid literal"), (b"", "invalid literal"), (b"-1", "class -1 is not"), (b"9" * 9, "class 999999999")],
)
def test_a_class_that_is_no_number_of_one_is_named_and_left_out(
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
    assert "left out train-1.tar/x: " in caplog.text
    assert named in caplog.text


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_a_list_that_lacks_a_class_stops(plain_shards: Path, limit: int) -> None:
    (plain_shards / "classes.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
    with pytest.raises(DataError, match=r"100 of 300 members .* class 2 is not in classes.json, which has 0 to 1"):
        opened(plain_shards, limit)


@pytest.mark.parametrize("text", ["[1", '{"1": "cat"}', '{"0": "cat", "2": "dog"}', "3"])
def test_a_list_with_a_gap_or_of_another_kind_is_refused(plain_shards: Path, text: str) -> None:
    (plain_shards / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes.json is not"):
        class_names(plain_shards)


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
def test_a_damaged_shard_is_one_fault_and_what_came_before_counts(
    plain_shards: Path, caplog: pytest.LogCaptureFixture, limit: int, damage: Callable[[bytes], bytes]
) -> None:
    content = damage((plain_shards / "train-1.tar").read_bytes())
    (plain_shards / "train-2.tar").write_bytes(content)
    photographs = opened(plain_shards, limit)
    assert 300 <= len(photographs) <= 450
    assert caplog.text.count("left out train-2.tar:") == 1


@pytest.mark.parametrize("limit", [HELD, STREAMED], ids=["held", "streamed"])
def test_a_photograph_whose_end_is_cut_off_does_not_count(
    plain_shards: Path, add_member: AddMember, encoded_image: Callable[..., bytes], limit: int
) -> None:
    file = plain_shards / "train-2.tar"
    with tarfile.open(file, "w") as shard:
        for name, content in (("0.cls", b"0"), ("0.png", encoded_image(0)), ("1.cls", b"0"), ("1.png", bytes(4096))):
            add_member(shard, name, content)
    file.write_bytes(file.read_bytes()[: 6 * 512 + 1024 + 2000])
    assert len(opened(plain_shards, limit)) == 301


@pytest.mark.parametrize("most", [None, 200], ids=["held", "streamed"])
def test_a_damaged_shard_is_named_once_however_often_it_is_read(
    plain_shards: Path, caplog: pytest.LogCaptureFixture, most: int | None
) -> None:
    (plain_shards / "train-0a.tar").write_bytes(b"no archive")
    opened(plain_shards, HELD if most is None else most * 16 * 16 * 3)
    assert caplog.text.count("left out train-0a.tar") == 1


def test_one_that_can_not_be_read_at_all_is_a_fault(plain_shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (plain_shards / "train-2.tar").mkdir()
    assert len(opened(plain_shards, HELD)) == 300
    assert "left out train-2.tar: " in caplog.text


def test_counting_stops_where_enough_is_known(plain_shards: Path) -> None:
    shards = WebDatasetShards(plain_shards, "train")
    assert shards.count(1000, BadSamples()) == 300
    assert shards.count(5, BadSamples()) == 6


def test_two_files_of_one_name_are_named(
    plain_shards: Path, add_member: AddMember, encoded_image: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(plain_shards / "train-1.tar", "a") as shard:
        for name, content in (("x.png", encoded_image(0)), ("x.png", encoded_image(1)), ("x.cls", b"0")):
            add_member(shard, name, content)
    assert len(opened(plain_shards, HELD)) == 301
    assert "left out train-1.tar/x.png: two files have this name" in caplog.text


def test_compressed_shards_that_are_too_large_must_be_unpacked(shards: Path) -> None:
    with pytest.raises(DataError, match=r"train-0000.tar.gz is one of 2 compressed .* unpack them \(gunzip train-\*"):
        opened(shards, STREAMED)
