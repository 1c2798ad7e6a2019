"""Class names to class ids."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence

from service.errors import ErrorDetail
from service.operations.errors import InvalidArgument, UnknownClass

_SEPARATORS = re.compile(r"[\s_-]+")


def _normalised(name: str) -> str:
    return _SEPARATORS.sub(" ", name.strip().casefold())


class ClassIndex:
    """The classes of the generator ``model``: ``names[id]`` holds a name, or several separated by commas."""

    def __init__(self, names: Sequence[str], *, model: str) -> None:
        self._model = model
        self.names = [[alias.strip() for alias in name.split(",")] for name in names]
        self._ids: dict[str, list[int]] = defaultdict(list)
        for index, aliases in enumerate(self.names):
            for alias in aliases:
                self._ids[_normalised(alias)].append(index)

    def __len__(self) -> int:
        return len(self.names)

    def resolve(self, label: int | str | None, *, pointer: str = "/class") -> int | None:
        """The id of a class given by id or by any of its names; None (no class) stays None.

        Raises ``UnknownClass`` with similar names, or ``InvalidArgument`` where a name belongs to several classes.
        """
        if label is None:
            return None
        if isinstance(label, int):
            if 0 <= label < len(self):
                return label
            raise UnknownClass(
                f"There is no class {label}; ids are 0..{len(self) - 1}.",
                errors=[
                    ErrorDetail(pointer=pointer, detail="unknown class id", value=label, expected=f"0..{len(self) - 1}")
                ],
            )
        ids = self._ids.get(_normalised(label), [])
        if len(ids) == 1:
            return ids[0]
        if ids:
            raise InvalidArgument(
                f"{len(ids)} classes are called {label!r}: {', '.join(map(str, ids))}. Name one by its id.",
                errors=[ErrorDetail(pointer=pointer, detail="ambiguous class name", value=label)],
                candidates=[{"id": index, "name": self.names[index][0]} for index in ids],
            )
        near = self.near(label)
        hint = f" Did you mean {', '.join(near)}?" if near else f" GET /v1/models/{self._model}/classes lists them."
        raise UnknownClass(
            f"No class is called {label[:80]!r}.{hint}",
            errors=[ErrorDetail(pointer=pointer, detail="unknown class name", value=label[:80])],
            near_matches=near,
        )

    def search(self, text: str) -> list[int]:
        """Ids of the classes with a name that looks like ``text`` or contains it, the closest first."""
        return list(dict.fromkeys(index for name in self._near(text, 50) for index in self._ids[name]))

    def near(self, label: str, *, limit: int = 5) -> list[str]:
        """Names that look like ``label``, or contain it, the closest first."""
        return [self._spelled(name) for name in self._near(label, limit)]

    def _near(self, text: str, limit: int) -> list[str]:
        wanted = _normalised(text[:80])
        close = difflib.get_close_matches(wanted, self._ids, n=limit, cutoff=0.6)
        inside = [name for name in self._ids if wanted and wanted in name]
        return list(dict.fromkeys([*close, *inside]))[:limit]

    def _spelled(self, normalised: str) -> str:
        aliases = self.names[self._ids[normalised][0]]
        return next(alias for alias in aliases if _normalised(alias) == normalised)
