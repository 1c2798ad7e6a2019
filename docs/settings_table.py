"""Writes docs/configuration.md from the settings: ``python -m docs.settings_table > docs/configuration.md``."""

from __future__ import annotations

import types
import typing
from typing import Any

from service.settings import Settings

__all__ = ["settings_document"]

_HEAD = """# Configuration

Every setting is an environment variable. `titok serve` takes the ones that are changed most as flags of the same name
(`TITOK_ADMIN_PORT` is `--admin-port`); a flag wins over the variable. The service prints at start what is not at its
default; keys are never shown. This page is made from the settings class (`make docs`), and a test compares the two.

Besides: `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are respected where weights come from the hub.

| variable | takes | default | meaning |
|---|---|---|---|
"""


def settings_document() -> str:
    """The page, in Markdown."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, ()) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `TITOK_{name.upper()}` | {_kind(field.annotation, field.metadata)} | {shown} | {meaning} |")
    return _HEAD + "\n".join(rows) + "\n"


def _kind(annotation: Any, metadata: list[Any]) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return _kind(parts[-1], metadata)
    if annotation is bool:
        return "`true`, `false`"
    if annotation in (int, float):
        bounds = [
            f"{sign} {getattr(part, name)}" for part in metadata for name, sign in _SIGNS.items() if hasattr(part, name)
        ]
        return " and ".join([("whole number" if annotation is int else "number"), ", ".join(bounds)]).removesuffix(
            " and "
        )
    return "text"


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

if __name__ == "__main__":
    print(settings_document(), end="")
