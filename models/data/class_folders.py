"""Which folders are classes: of each branch the topmost one with images right in it.

::

    cat/1.jpg           class "cat"              pets/cat/1.jpg      class "pets/cat"
    1.jpg               of no class              pets/cat/old/2.jpg  class "pets/cat" as well
"""

from __future__ import annotations

from collections.abc import Iterable, Set

__all__ = ["class_folders", "class_of"]


def class_folders(paths: Iterable[str]) -> set[str]:
    """The classes that files at ``paths``, relative and with slashes, make."""
    holding = {path.rpartition("/")[0] for path in paths} - {""}
    return {next(parent for parent in _parents(f"{folder}/") if parent in holding) for folder in holding}


def class_of(path: str, classes: Set[str]) -> str | None:
    """The class that a file belongs to."""
    return next((parent for parent in _parents(path) if parent in classes), None)


def _parents(path: str) -> list[str]:
    """``a``, ``a/b`` of ``a/b/photo.jpg``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
