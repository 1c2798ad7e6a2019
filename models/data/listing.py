"""Lists the files of a dataset's folder, and their states."""

import os
from pathlib import Path


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The files below a folder whose names end in ``suffixes``, in any case: relative paths with slashes, sorted.

    Hidden files are left out, such as the ``._photo.jpg`` that some systems write beside each ``photo.jpg``.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        relative = Path(parent).relative_to(folder)
        found += [
            (relative / name).as_posix()
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def state_of(file: Path) -> tuple[int, int]:
    """Size and modification time of a file; zeros for a broken link, which reading will report."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
