"""Opens a source by name: a folder of images, WebDataset archives or Parquet files, local or at an fsspec URL.

::

    photos/                      a folder of images; subfolders are classes
    data/train-{0000..0099}.tar  archives; also with * and ?; also .tar.gz and .tgz
    s3://bucket/set/             a folder of archives, of Parquet files or of images
    dataset/data/train-*.parquet a Hugging Face dataset; or its folder, if it has one split
"""

import hashlib
import re
from collections.abc import Sequence

import fsspec
from fsspec import AbstractFileSystem

from service.bulk.entries import LabelType, Source
from service.bulk.errors import BulkError
from service.bulk.image_folders import ImageFolder
from service.bulk.tar_archives import TarArchive
from service.imaging.formats import ACCEPTED_SUFFIXES

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_PARQUET = (".parquet",)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPLIT = re.compile(r"(.+?)-\d+-of-\d+")  # Hugging Face's file names of a split


def open_source(
    name: str, *, image_column: str | None = None, label_column: str | None = None, key_column: str | None = None
) -> Source:
    """Opens the source ``name``; the columns are those of Parquet files (see ``columns_of``).

    Raises:
        BulkError: nothing is found, or files of several kinds.
    """
    try:
        files, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise BulkError(f"{name} cannot be opened: {error}") from None
    try:
        found = _find(files, path)
    except OSError as error:
        raise BulkError(f"cannot read {name}: {error.strerror or error}") from None
    described = list(found)
    if not described:
        raise BulkError(f"there is nothing at {name}")
    archives, tables = _ending(described, _ARCHIVES), _ending(described, _PARQUET)
    if archives and tables:
        raise BulkError(f"{name} contains archives and Parquet files: name one kind, such as {name.rstrip('/')}/*.tar")
    absolute = files.unstrip_protocol(path).removeprefix("file://")
    columns = {"image": image_column, "label": label_column, "key": key_column}
    if tables:
        return _parquet(files, absolute, tables, _digest(found, tables), columns)
    if any(columns.values()):
        raise BulkError(f"{name} is not Parquet: it has no columns")
    if archives:
        parts = tuple(TarArchive(files, path) for path in archives)
        return Source(absolute, "webdataset", parts, _digest(found, archives), labels="integer")
    images = _ending(described, tuple(ACCEPTED_SUFFIXES))
    if not images:
        raise BulkError(f"there are no images, no .tar and no .parquet files at {name}")
    root = path.rstrip("/") + "/"
    if any(not image.startswith(root) for image in images):
        raise BulkError(f"{name} is not a folder: use titok encode for single images")
    folder = ImageFolder(files, root.rstrip("/"), [image.removeprefix(root) for image in images])
    labels: LabelType = "integer" if folder.classes else None
    digest = _digest(found, images)
    return Source(absolute, "folder", (folder,), digest, labels, folder.classes or None, folder.count())


def _find(files: AbstractFileSystem, path: str) -> dict[str, str]:
    """The files at and below a path, pattern or range. Values change whenever the file changes."""
    paths = _expanded(path)
    if any(character in path for character in "*?["):
        paths = [match for one in paths for match in files.glob(one)]
    found: dict[str, str] = {}
    for one in paths:
        # HTTP servers cannot list a folder, so a file that is named itself is not searched for.
        single = one.lower().endswith((*_ARCHIVES, *_PARQUET))
        details = {one: files.info(one)} if single else files.find(one, detail=True)
        for file, detail in details.items():
            if not any(part.startswith(".") for part in file.removeprefix(one).split("/")):
                changed = detail.get("mtime") or detail.get("LastModified") or detail.get("ETag")
                found[file] = f"{file}\0{detail.get('size')}\0{changed}"
    return dict(sorted(found.items()))


def _expanded(path: str) -> list[str]:
    """Expands ranges: ``a-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar."""
    if not (match := _RANGE.search(path)):
        return [path]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [rest for number in numbers for rest in _expanded(path[: match.start()] + number + path[match.end() :])]


def _ending(paths: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [path for path in paths if path.lower().endswith(suffixes)]


def _digest(found: dict[str, str], used: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(found[path] for path in used).encode(errors="surrogateescape")).hexdigest()


def _parquet(
    files: AbstractFileSystem, name: str, tables: list[str], digest: str, named: dict[str, str | None]
) -> Source:
    import pyarrow as pa

    from service.bulk.parquet_files import ParquetFile, columns_of

    splits = {match[1] for table in tables if (match := _SPLIT.fullmatch(table.removesuffix(".parquet")))}
    if len(splits) > 1:
        shown = ", ".join(f"'{split}-*.parquet'" for split in sorted(splits))
        raise BulkError(f"{name} has more than one split: name one of {shown}")
    try:
        columns = columns_of(files, tables[0], **named)
        parts = tuple(ParquetFile(files, table, columns) for table in tables)
        total = sum(part.count() for part in parts)
    except (OSError, pa.ArrowException) as error:
        raise BulkError(f"cannot read {name}: {error}") from None
    return Source(name, "parquet", parts, digest, columns.labels, columns.classes, total)
