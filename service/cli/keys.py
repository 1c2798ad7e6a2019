"""``titok keys``: makes API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from service.api.access.keys import ApiKey, new_key
from service.api.access.roles import ROLES, Role

__all__ = ["keys"]

keys = typer.Typer(name="keys", help="API keys of a service.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """API keys of a service."""


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs: letters, digits, '.', '_' and '-'.")],
    role: Annotated[list[str], typer.Option(help=f"What it is for: {', '.join(ROLES)}. May be given several times.")],
    rate: Annotated[str | None, typer.Option(help="Images it may ask for: 100/second, 5000 per 10 minutes.")] = None,
) -> None:
    """Make a key. It is shown this once; what is kept of it is its SHA-256."""
    key = new_key()
    made = ApiKey.plain(key, name=name, roles=_roles(role), rate=rate)
    typer.echo(f"Key, shown this once:\n{key}\n")
    typer.echo(f"For TITOK_API_KEYS_FILE:\n{made.table()}")
    typer.echo(f"Or an entry of TITOK_API_KEYS:\n{made.entry()}")


def _roles(given: list[str]) -> list[Role]:
    for name in given:
        if name not in ROLES:
            raise ValueError(f"{name[:40]!r} is no role; there are {', '.join(ROLES)}")
    return [role for role in ROLES if role in given]
