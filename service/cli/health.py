"""``titok health``: asks the running service whether it is ready; the exit code is the answer."""

import json
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

import typer

from service.cli.options import CommandError, load_settings

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
_SECONDS = 4.0


def health() -> None:
    """Ask the service that was started with the same settings whether it is ready.

    For health checks of containers and service managers: reads TITOK_ADMIN_HOST and TITOK_ADMIN_PORT, and knows nothing of
    flags of `titok serve`. The exit code is 0 if the service is ready, 1 if it is not, or does not answer.

    Example:

        titok health && echo ready
    """
    settings = load_settings()
    if settings.admin_port == 0:
        raise CommandError("TITOK_ADMIN_PORT is 0, so the system has chosen the port; set another one")
    try:
        status, document = ask(settings.admin_host, settings.admin_port, "/readyz")
        state, reason = document["status"], document["reason"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        place = f"TITOK_ADMIN_HOST={settings.admin_host} TITOK_ADMIN_PORT={settings.admin_port}"
        raise CommandError(f"no answer of a TiTok service at {place}: {error}") from None
    typer.echo(state if reason is None else f"{state}: {reason}")
    raise typer.Exit(status != HTTPStatus.OK)


def ask(host: str, port: int, path: str) -> tuple[int, Any]:
    """Status and JSON document of a health route on this machine, without a proxy; ``host`` is the address listened on.

    Raises ``OSError``, ``HTTPException`` or ``ValueError``.
    """
    connection = HTTPConnection(_ANY_ADDRESS.get(host, host), port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
