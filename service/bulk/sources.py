"""Opens a source by name: a folder of images, WebDataset archives or Parquet files, local or at an fsspec URL.

::

    photos/                      a folder of images; subfolders are classes
    data/train-{0000..0099}.tar  archives; also with * and ?; also .tar.gz, .tgz, .tar.zst, .tzst
    s3://bucket/set/             a folder of archives, of Parquet files or of images
    dataset/                     a Hugging Face dataset, of which a split is chosen
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import fsspec
from fsspec import AbstractFileSystem

from models.data.splits import ALL, ImageSplit, choose_split, split_of_file, splits_of_images
from models.data.tar_samples import TAR_SUFFIXES
from models.errors import DataError, NoImagesError
from service.bulk.entries import LabelType, Source
from service.bulk.errors import BulkError
from service.bulk.image_folders import ImageFolder
from service.bulk.keys import FileKeys, keys_of_files
from service.bulk.listing import Listing, SourceFile, list_files
from service.bulk.tar_archives import TarArchive
from service.imaging.formats import ACCEPTED_SUFFIXES

_PARQUET = (".parquet",)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is read of a source.

    Attributes:
        split: the split to read, see ``choose_split``.
        image_column, label_column, key_column: columns of Parquet files other than the default ones.
        image_extensions: of the images in archives and folders, such as ``jpg`` or ``seg.png``; empty: the usual ones.
        with_labels: whether labels are read.
    """

    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    key_column: str | None = None
    image_extensions: tuple[str, ...] = ()
    with_labels: bool = True


@dataclass(frozen=True)
class _Opening:
    """A source that is being opened; ``name`` as the user gave it."""

    name: str
    system: AbstractFileSystem
    listing: Listing
    options: SourceOptions

    def ending(self, suffixes: tuple[str, ...]) -> list[SourceFile]:
        return [file for file in self.listing.files if file.name.lower().endswith(suffixes)]

    def chosen(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """The archives or tables of one split. Raises ``DataError``."""
        splits = {file.name: split_of_file(file.name) for file in files}
        names = choose_split({name: one.split for name, one in splits.items()}, self.options.split, self.name)
        configurations = sorted({splits[name].configuration for name in names if splits[name].split is not None})
        if len(configurations) > 1 and not self.listing.is_pattern and self.options.split != ALL:
            shown = ", ".join(name or "its own folder" for name in configurations)
            raise DataError(
                f"{self.name} has several configurations: {shown}; name the folder of one, or a pattern for more than one"
            )
        return [file for file in files if file.name in set(names)]


def open_source(name: str, options: SourceOptions = SourceOptions()) -> Source:
    """Opens the source ``name``.

    Raises ``DataError`` if there are no images or several splits, ``BulkError`` if it cannot be opened, has files of several
    kinds, or not the columns that are named.
    """
    try:
        system, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise BulkError(f"{name} cannot be opened: {error}") from None
    try:
        listing = list_files(system, path, (*TAR_SUFFIXES, *_PARQUET))
    except FileNotFoundError as error:
        raise BulkError(f"there is nothing at {error.filename or error}") from None
    except OSError as error:
        raise BulkError(f"cannot read {name}: {error.strerror or error}") from None
    if not listing.files and (listing.is_pattern or not system.exists(path)):
        raise BulkError(f"there is nothing at {name}")
    opening = _Opening(name, system, listing, options)
    absolute = system.unstrip_protocol(path).removeprefix("file://")
    archives, tables = opening.ending(TAR_SUFFIXES), opening.ending(_PARQUET)
    if archives and tables:
        raise BulkError(f"{name} contains archives and Parquet files: name one kind, such as {name.rstrip('/')}/*.tar")
    if tables:
        if options.image_extensions:
            raise BulkError(f"{name} is Parquet: name a column with --image-column, not extensions")
        return _parquet(opening, absolute, opening.chosen(tables))
    if options.image_column or options.label_column or options.key_column:
        raise BulkError(f"{name} is not Parquet: it has no columns")
    if archives:
        return _webdataset(opening, absolute, opening.chosen(archives))
    return _folder(opening, absolute)


def _digest(files: Sequence[SourceFile], options: SourceOptions, keys: Sequence[FileKeys] = ()) -> str:
    """A text that changes whenever files, or the options that labels, images and keys depend on, do."""
    lines = [file.state for file in files]
    others = replace(options, split=None)
    if others != SourceOptions():
        lines.append(repr(others))
    lines += [repr(one) for one in keys if one.is_prefixed]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _parquet(opening: _Opening, absolute: str, tables: Sequence[SourceFile]) -> Source:
    from service.bulk.parquet_files import ColumnNames, ParquetFile, columns_of, labels_of

    system, options = opening.system, opening.options
    named = ColumnNames(options.image_column, options.label_column, options.key_column, options.with_labels)
    columns = [columns_of(system, table.path, named) for table in tables]
    labels, classes = labels_of(columns, [table.path for table in tables])
    keys = keys_of_files([table.name for table in tables], _PARQUET)
    parts = tuple(
        ParquetFile(system, table.path, columns[number], keys[number], labels) for number, table in enumerate(tables)
    )
    total = sum(one.rows for one in columns)
    return Source(absolute, "parquet", parts, _digest(tables, options, keys), labels, classes, total)


def _webdataset(opening: _Opening, absolute: str, archives: Sequence[SourceFile]) -> Source:
    system, options = opening.system, opening.options
    keys = keys_of_files([archive.name for archive in archives], TAR_SUFFIXES)

    def part(number: int, labels: LabelType) -> TarArchive:
        path = archives[number].path
        return TarArchive(system, path, keys[number], labels=labels, extensions=options.image_extensions)

    labels: LabelType = None
    if options.with_labels:
        try:
            labels = part(0, None).label_type()
        except OSError as error:
            raise BulkError(f"cannot read {archives[0].path}: {error.strerror or error}") from None
    parts = tuple(part(number, labels) for number in range(len(archives)))
    return Source(absolute, "webdataset", parts, _digest(archives, options, keys), labels=labels)


def _folder(opening: _Opening, absolute: str) -> Source:
    root, options = opening.listing.root, opening.options
    extensions = tuple(f".{extension}" for extension in options.image_extensions) or tuple(ACCEPTED_SUFFIXES)
    images = opening.ending(extensions)
    if not images:
        raise NoImagesError(opening.name)
    if opening.listing.is_pattern or any(image.path == root for image in images):
        raise BulkError(f"{opening.name} is not a folder: use titok encode for single images")
    splits = splits_of_images(image.name for image in images)
    names = choose_split({name: one.split for name, one in splits.items()}, options.split, opening.name)
    paths: Mapping[str, str | None] = {name: _label_path(name, splits[name], options) for name in names}
    folder = ImageFolder(opening.system, root.rstrip("/"), paths)
    digest = _digest([image for image in images if image.name in paths], options)
    labels: LabelType = "integer" if folder.classes else None
    return Source(absolute, "folder", (folder,), digest, labels, folder.classes or None, folder.count())


def _label_path(name: str, split: ImageSplit, options: SourceOptions) -> str | None:
    """The path that tells an image's class. With all splits together, folders without class folders are classes."""
    if not options.with_labels:
        return None
    return name if options.split == ALL and "/" not in split.path else split.path
