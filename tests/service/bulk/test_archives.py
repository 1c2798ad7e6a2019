"""Archives as people make them: links, samples in pieces, masks beside images, labels of any kind, Zstandard."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from models.data import tar_samples
from service.bulk.entries import Entry, Position
from service.bulk.errors import BrokenImage
from service.bulk.sources import SourceOptions, open_source
from tests.service.bulk.data_sets import add_member

LINKS = {tarfile.SYMTYPE: "@", tarfile.LNKTYPE: "="}


def archive_of(path: Path, members: dict[str, bytes], links: tuple[tuple[str, bytes, str], ...] = ()) -> Path:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            add_member(archive, name, content)
        for name, kind, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    data = written.getvalue()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def entries_of(path: Path, **options: Any) -> list[Entry]:
    return [entry for _, entry in open_source(str(path), SourceOptions(**options)).entries(Position(0, 0))]


def content_of(entry: Entry) -> bytes | str:
    try:
        return entry.read()
    except BrokenImage as error:
        return str(error)


FOLLOWED = (
    ("b.jpg", tarfile.SYMTYPE, "images/a.jpg"),
    ("images/c.jpg", tarfile.SYMTYPE, "./a.jpg"),
    ("d.jpg", tarfile.LNKTYPE, "images/a.jpg"),
    ("e.jpg", tarfile.SYMTYPE, "d.jpg"),
    ("e.cls", tarfile.LNKTYPE, "images/a.cls"),
)
BROKEN = (
    ("f.jpg", tarfile.SYMTYPE, "../images/a.jpg"),
    ("g.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    ("h.jpg", tarfile.LNKTYPE, "z.jpg"),
)


def test_links_are_followed_in_the_archive_alone(tmp_path: Path) -> None:
    members = {"images/a.jpg": b"picture", "images/a.cls": b"5"}
    path = archive_of(tmp_path / "x.tar", members, FOLLOWED + BROKEN)
    found = {entry.key: (entry.label, content_of(entry)) for entry in entries_of(path)}
    followed = dict.fromkeys(("b", "images/c", "d"), (None, b"picture"))
    lost = "its image is a link to nothing before it in the archive"
    assert found == {
        "images/a": (5, b"picture"),
        **followed,
        "e": (5, b"picture"),
        **dict.fromkeys(("f", "g", "h"), (None, lost)),
    }


def test_links_in_compressed_archives_are_recorded(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "x.tar.gz", {"images/a.jpg": b"picture"}, FOLLOWED[:1])
    assert [content_of(entry) for entry in entries_of(path)] == [
        b"picture",
        "its image is a link, which is not followed in a compressed archive",
    ]


def test_files_of_a_sample_need_not_be_adjacent(tmp_path: Path) -> None:
    members = {f"{number}.jpg": b"%d" % number for number in range(50)}
    members |= {f"{number}.cls": b"%d" % number for number in reversed(range(50))}
    found = entries_of(archive_of(tmp_path / "x.tar", members))
    assert [(entry.key, entry.label, entry.read()) for entry in found] == [
        (str(number), number, b"%d" % number) for number in range(50)
    ]


@pytest.mark.parametrize("limit", ["WAITING_SAMPLES", "waiting_bytes"])
def test_files_too_far_apart_are_recorded(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{number}.jpg": b"image" for number in range(5)} | {"0.cls": b"1", "4.cls": b"1"}
    if limit == "WAITING_SAMPLES":
        monkeypatch.setattr(tar_samples, limit, 3)
    else:
        monkeypatch.setitem(tar_samples.read_samples.__kwdefaults__, limit, 16)
    found = entries_of(archive_of(tmp_path / "x.tar", members))
    assert [(entry.key, entry.label) for entry in found] == [
        *(("0", None), ("1", None), ("2", None), ("3", None)),
        ("4", 1),
        ("0~5", 1),
    ]
    assert "0 images in one sample" in str(content_of(found[-1]))


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    names = ("./a.jpg", "._a.jpg", "x/._b.jpg", ".cache/c.jpg", "x/.d/e.jpg", "__MACOSX/a.jpg", "x/f.jpg")
    found = entries_of(archive_of(tmp_path / "x.tar", dict.fromkeys(names, b"")))
    assert [entry.key for entry in found] == ["a", "x/f"]


def test_an_image_beside_a_mask(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "x.tar", {"0.jpg": b"image", "0.seg.png": b"mask", "1.a.png": b"a", "1.b.png": b"b"})
    assert [content_of(entry) for entry in entries_of(path)] == [
        b"image",
        "2 images in one sample, which has ['a.png', 'b.png']: choose one with --image-extension",
    ]
    assert [content_of(entry) for entry in entries_of(path, image_extensions=("seg.png", "b.png"))] == [b"mask", b"b"]
    (tmp_path / "folder").mkdir()
    for name in ("0.jpg", "0.seg.png", "1.JPG"):
        (tmp_path / "folder" / name).write_bytes(b"")
    assert [entry.key for entry in entries_of(tmp_path / "folder", image_extensions=("jpg",))] == ["0", "1"]


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ([b"3", b" 4\n"], [3, 4]),
        ([b"cat\n", "éa".encode()], ["cat", "éa"]),
        ([b"3", b"n01440764"], ["3", "n01440764"]),
        ([b"0.5", b""], ["0.5", ""]),
        ([b"9" * 30, b"1"], [None, 1]),
    ],
)
def test_labels_are_integers_or_text(classes: list[bytes], labels: list[int | str], tmp_path: Path) -> None:
    members = {
        f"{number}.{suffix}": content
        for number, label in enumerate(classes)
        for suffix, content in (("jpg", b""), ("cls", label))
    }
    path = archive_of(tmp_path / "x.tar", members)
    assert [entry.label for entry in entries_of(path)] == labels
    assert [entry.label for entry in entries_of(path, with_labels=False)] == [None, None]
    assert open_source(str(path)).labels == ("text" if isinstance(labels[1], str) else "integer")


def test_zstandard_is_read_and_its_damage_recorded(tmp_path: Path) -> None:
    members = {f"{number}.jpg": bytes([number]) * 200_000 for number in range(3)}
    path = archive_of(tmp_path / "x.tar.zst", members)
    assert [entry.read() for entry in entries_of(path)] == list(members.values())
    whole = zstandard.compress(zstandard.decompress(path.read_bytes(), 1 << 21), level=-100)
    for damaged in (whole[: len(whole) // 2], b"no archive", b"", whole[:40] + b"x" * 30 + whole[70:]):
        path.write_bytes(damaged)
        assert "the archive ends here" in str(content_of(entries_of(path)[-1]))


def test_headers_of_a_long_archive_are_not_kept(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "x.tar", {f"{number}.jpg": b"" for number in range(40)})
    with path.open("rb") as stream:
        samples = tar_samples.read_samples(stream, lambda archive, _: len(archive.members), mode="r:")  # type: ignore[attr-defined]
        assert {kept for _, ((_, kept),) in samples} == {0}
