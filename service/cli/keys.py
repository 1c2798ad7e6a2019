"""``titok keys``: creates API keys."""

from typing import Annotated

import typer

from service.api.access.keys import ApiKey, new_key
from service.api.access.roles import ROLES, Role
from service.cli.options import CommandError

keys = typer.Typer(name="keys", help="Create API keys.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Create API keys."""  # a callback, so that `new` stays a subcommand although it is the only one


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, for logs: letters, digits, '.', '_' and '-'.")],
    role: Annotated[list[str], typer.Option(help=f"What the key permits: {', '.join(ROLES)}. May be repeated.")],
    rate: Annotated[
        str | None, typer.Option(help="Rate limit in images, such as 100/second or '5000 per 10 minutes'.")
    ] = None,
) -> None:
    """Create a key. It is printed once; the service stores its SHA-256 only.

    Example:

        titok keys new alice --role encode --rate 100/second
    """
    if unknown := [given for given in role if given not in ROLES]:
        raise CommandError(f"unknown role {unknown[0][:40]!r}; the roles are {', '.join(ROLES)}")
    roles: list[Role] = [each for each in ROLES if each in role]
    key = new_key()
    made = ApiKey.plain(key, name=name, roles=roles, rate=rate)
    typer.echo(f"Key (not shown again):\n{key}\n")
    typer.echo(f"Table for TITOK_API_KEYS_FILE:\n{made.table()}")
    typer.echo(f"Or entry for TITOK_API_KEYS:\n{made.entry()}")
