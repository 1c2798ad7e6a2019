"""Class labels from folder paths: the topmost folder of each branch that directly contains images is a class.

::

    cat/1.jpg           class "cat"              pets/cat/1.jpg      class "pets/cat"
    1.jpg               no class                 pets/cat/old/2.jpg  also class "pets/cat"
"""

from __future__ import annotations

from collections.abc import Iterable, Set


def class_folders(paths: Iterable[str]) -> set[str]:
    """The classes of files at ``paths``, which are relative and use slashes."""
    holding = {path.rpartition("/")[0] for path in paths} - {""}
    return {next(parent for parent in _parents(f"{folder}/") if parent in holding) for folder in holding}


def class_of(path: str, classes: Set[str]) -> str | None:
    """The class of a file, or None if no parent folder is a class."""
    return next((parent for parent in _parents(path) if parent in classes), None)


def _parents(path: str) -> list[str]:
    """``a``, ``a/b`` of ``a/b/photo.jpg``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
