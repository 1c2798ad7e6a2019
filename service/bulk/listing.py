"""Lists the files of a source: below a folder, at a pattern or a range, or one file; local or at an fsspec URL."""

import glob
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_FOLDERS_OF_SYSTEMS = ("__MACOSX",)


class SourceFile(NamedTuple):
    """A file: its ``path`` in the file system, its ``name`` relative to the folder or to the start of the pattern, and a
    text that changes whenever the file does.
    """

    path: str
    name: str
    state: str


class Listing(NamedTuple):
    """The files at a path, sorted; ``root``: the folder that names are relative to; ``is_pattern``: named by a pattern."""

    files: list[SourceFile]
    root: str
    is_pattern: bool


def list_files(system: AbstractFileSystem, path: str, named: tuple[str, ...]) -> Listing:
    """The files at ``path``: a folder, a file, or a pattern of ``*``, ``?``, ``[abc]``, ``{00..99}`` and ``{a,b}``.

    A name that exists as it is written is no pattern. Hidden files are left out. Files whose names end in one of ``named``
    are not searched for if they are named themselves: HTTP servers cannot list a folder. Raises ``OSError``.
    """
    root, paths = _expanded(system, path)
    found: dict[str, SourceFile] = {}
    for one in paths:
        single = _without_query(system, one).lower().endswith(named)
        details = {one: system.info(one)} if single else system.find(one, detail=True)
        for file, detail in details.items():
            name = file.removeprefix(root).lstrip("/") if file != root else file.rpartition("/")[2]
            if file != path and any(part.startswith(".") or part in _FOLDERS_OF_SYSTEMS for part in name.split("/")):
                continue
            changed = detail.get("mtime") or detail.get("LastModified") or detail.get("ETag")
            state = f"{file}\0{detail.get('size')}\0{changed}"
            found[file] = SourceFile(file, _without_query(system, name), state)
    return Listing([file for _, file in sorted(found.items())], root, paths != [path])


def _expanded(system: AbstractFileSystem, path: str) -> tuple[str, list[str]]:
    """The folder before the first wildcard, and the paths that a pattern matches; the path itself if it is none."""
    wildcards = "*[{" if _is_http(system) else "*?[{"
    if not _has(path, wildcards) or system.exists(path):
        return path, [path]
    folders = path.split("/")
    plain = next(depth for depth, part in enumerate(folders) if _has(part, wildcards))
    literal = (depth for depth in range(len(folders) - 1, plain, -1) if system.exists("/".join(folders[:depth])))
    depth = next(literal, plain)  # of folders that have brackets in their names, the innermost that exists
    root, pattern = "/".join(folders[:depth]), "/".join(folders[depth:])
    found: list[str] = []
    for one in _without_braces(pattern):
        found += system.glob(_join(glob.escape(root), one)) if _has(one, wildcards) else [_join(root, one)]
    return root, found


def _join(folder: str, rest: str) -> str:
    return f"{folder}/{rest}" if folder or not rest else rest


def _has(text: str, characters: str) -> bool:
    return any(character in text for character in characters)


def _without_braces(path: str) -> list[str]:
    """Expands braces: ``{a,b}-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar, b-08.tar, ..."""
    if not (match := _BRACES.search(path)):
        return [path]
    first, last, listed = match.groups()
    numbers = range(int(first), int(last) + 1) if listed is None else ()
    texts = [f"{number:0{len(first)}d}" for number in numbers] if listed is None else listed.split(",")
    rest = _without_braces(path[match.end() :])
    return [path[: match.start()] + text + end for text in texts for end in rest]


def _is_http(system: AbstractFileSystem) -> bool:
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    return "http" in protocols or "https" in protocols


def _without_query(system: AbstractFileSystem, path: str) -> str:
    return urlsplit(path).path if _is_http(system) else path
