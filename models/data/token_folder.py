"""Opens a folder of tokens: an output of ``titok tokenize``, checked against its manifest, or files without one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.data.token_shards import FORMATS, KEYS_SUFFIX, TokenRow, TokenShape, TokenShard
from models.errors import DataError

_MANIFEST, _JOURNAL, _ERRORS = "manifest.json", "journal.jsonl", "errors.jsonl"
_VERSION = 1
_PREFIX = "tokens-"  # of files in a manifest: it may name images as well


@dataclass(frozen=True)
class TokenizerIdentity:
    """The tokenizer that made tokens: its ``name``, the digest of its ``weights``, and its ``revision``."""

    name: str
    weights: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name} ({self.weights[:12]})"


@dataclass(frozen=True)
class TokenFolder:
    """Tokens in shards of one format.

    Attributes:
        path: the folder, or the file.
        format: a name of ``FORMATS``.
        shards: in the order of their names.
        shape: what is known of the shape of the tokens.
        tokenizer: from the manifest; None without one.
        classes: the names of integer labels, if the manifest has them.
        files: size and SHA-256 of every file by its path, as the manifest has them.
    """

    path: Path
    format: str
    shards: tuple[TokenShard, ...]
    shape: TokenShape
    tokenizer: TokenizerIdentity | None
    classes: tuple[str, ...] | None
    files: dict[Path, tuple[int, str]]

    def rows(self) -> Iterator[TokenRow]:
        """All crops in order."""
        for shard in self.shards:
            yield from shard.rows()

    def check_tokenizer(self, tokenizer: TokenizerIdentity) -> None:
        """Raises ``DataError`` if the manifest names a tokenizer with other weights."""
        if self.tokenizer is not None and self.tokenizer.weights != tokenizer.weights:
            raise DataError(f"the tokens in {self.path} were made with {self.tokenizer}, not with {tokenizer}")

    def verify(self) -> None:
        """Reads all files and raises ``DataError`` for one whose SHA-256 is not that of the manifest."""
        for path, (_, digest) in self.files.items():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise DataError(f"{path} has changed: its SHA-256 is not that of {_MANIFEST}")


def open_tokens(path: Path, *, shape: TokenShape | None = None) -> TokenFolder:
    """The tokens at ``path``: an output folder of ``titok tokenize``, a folder of files of one format, or one file.

    With a manifest, files are compared by size and the manifest's shape is used; without one, ``shape``. Nothing is read.

    Raises ``DataError``: nothing is found, several formats, an unfinished run, a missing or truncated file.
    """
    shape = shape or TokenShape()
    if (path / _MANIFEST).is_file():
        return _with_manifest(path)
    if (path / _JOURNAL).is_file():
        raise DataError(f"the run that writes {path} is not finished: run titok tokenize again")
    found = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    by_format = {
        name: [file for file in found if file.name.endswith(suffix) and not _is_beside(file)]
        for name, (suffix, _) in FORMATS.items()
    }
    formats = [name for name, files in by_format.items() if files]
    if len(formats) != 1:
        listed = " and ".join(formats) if formats else f"no files ending in {', '.join(s for s, _ in FORMATS.values())}"
        raise DataError(f"there are {listed} at {path}: expected tokens in one format")
    (name,) = formats
    reader = FORMATS[name][1]
    return TokenFolder(path, name, tuple(reader(file, shape) for file in by_format[name]), shape, None, None, {})


def _is_beside(file: Path) -> bool:
    return file.name.startswith(".") or file.name.endswith(KEYS_SUFFIX) or file.name == _ERRORS


def _with_manifest(path: Path) -> TokenFolder:
    manifest = path / _MANIFEST
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise DataError(f"{manifest} has version {document['version']}; this program reads version {_VERSION}")
        if (dtype := document["output"].get("dtype")) not in (None, "uint16"):
            raise DataError(f"{path} holds latents in {dtype}, not token ids: read its files with pyarrow or NumPy")
        tokenizer, suffix_and_reader = document["tokenizer"], FORMATS[document["output"]["format"]]
        views = document.get("preprocessing", {}).get("views", 1)
        shape = TokenShape(tokenizer["num_tokens"], views, tokenizer["codebook_size"])
        identity = TokenizerIdentity(tokenizer["name"], tokenizer["weights"], tokenizer["revision"])
        classes = document["source"].get("classes")
        shards = [
            (shard["images"] * views, {path / file["name"]: (file["bytes"], file["sha256"]) for file in shard["files"]})
            for shard in document["shards"]
        ]
    except OSError as error:
        raise DataError(f"cannot read {manifest}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{manifest} is not the manifest of tokens: {error!r}") from error
    files = {name: described for _, one in shards for name, described in one.items()}
    _check_files(files)
    suffix, reader = suffix_and_reader
    readers = tuple(
        reader(file, shape, crops)
        for crops, one in shards
        for file in one
        if file.name.startswith(_PREFIX) and file.name.endswith(suffix) and not _is_beside(file)
    )
    return TokenFolder(path, document["output"]["format"], readers, shape, identity, classes and tuple(classes), files)


def _check_files(files: dict[Path, tuple[int, str]]) -> None:
    for file, (size, _) in files.items():
        try:
            found = file.stat().st_size
        except OSError as error:
            raise DataError(f"cannot read {file}, which {_MANIFEST} names: {error.strerror or error}") from error
        if found != size:
            raise DataError(f"{file} has {found} bytes; {_MANIFEST} says {size}")
