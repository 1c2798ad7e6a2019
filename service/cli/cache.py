"""``titok cache stats``, ``warm``, ``purge``: the Redis in which codes are kept, from outside of the service."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.cli.images import CommandError, Key, Tokenizer, Url, Weights
from service.cli.tokenize import SOME_BROKEN, progress_bar
from service.settings import Settings, invalid_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.cache.purging import Selection
    from service.cache.redis.connection import RedisClient
    from service.cache.statistics import CacheStatistics, RevisionStatistics, ServerInfo
    from service.cli.cache_warming import Warmed, Warmer

__all__ = ["cache"]

T = TypeVar("T")

cache = typer.Typer(help="Look at the cache of codes in Redis, fill it, empty it.", no_args_is_help=True)
console = Console(stderr=True)

_PATIENCE = 10.0  # seconds that Redis may take for an answer
_REMOTE_REQUESTS, _LOCAL_IMAGES = 16, 64  # under way at a time
_WIDE = 200  # characters, where nobody's window says how many there are
_SHOWN = 20  # broken images named on a terminal

RedisUrl = Annotated[
    str | None, typer.Option(metavar="REDIS_URL", help="Where Redis is, as in TITOK_REDIS_URL.", show_default=False)
]
Namespace = Annotated[
    str | None, typer.Option(help="First part of the keys, as in TITOK_CACHE_NAMESPACE.", show_default=False)
]


@cache.command()
def stats(
    url: RedisUrl = None,
    namespace: Namespace = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Keys of each revision whose memory and time to live are looked at.")
    ] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON document.")] = False,
) -> None:
    """Say what the cache holds: codes by tokenizer revision, their memory and time to live, and what Redis allows."""
    from service.cache.statistics import collect_statistics

    settings = _settings(url, namespace)

    async def ask() -> CacheStatistics:
        async with _redis(settings) as client:
            return await collect_statistics(client, settings.cache_namespace, sample=sample)

    statistics = _run(ask())
    if as_json:
        document = asdict(statistics)
        for revision, values in zip(statistics.revisions, document["revisions"], strict=True):
            values |= {"keys": revision.keys, "bytes": revision.bytes}
        typer.echo(json.dumps(document, indent=2))
    else:
        _show(statistics)


@cache.command()
def warm(
    source: Annotated[
        str, typer.Argument(help="Folder of images, WebDataset tars or Parquet files, as for titok tokenize.")
    ],
    url: Url = None,
    api_key: Key = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    devices: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N, where a model runs here.")] = None,
) -> None:
    """Fill the cache with a data set, so that these files need not be computed once they are sent.

    With --url the service there fills its own; else a model is loaded here, with the settings of the service (TITOK_*),
    and writes to Redis. What is known already is skipped. Broken images are named: exit code 3 says that there are some.
    """
    from service.bulk.sources import open_source  # torch is slow to import
    from service.cli.cache_warming import local_warmer, remote_warmer
    from service.cli.cache_warming import warm as run

    opened = open_source(source)
    warmer: AbstractAsyncContextManager[Warmer]
    if url is not None:
        warmer = remote_warmer(url, api_key=api_key, concurrency=_REMOTE_REQUESTS)
        concurrency = _REMOTE_REQUESTS
    else:
        given = {"tokenizer": tokenizer, "tokenizer_weights": weights, "devices": devices}
        given = {name: value for name, value in given.items() if value is not None}
        settings = _settings(redis_url, namespace, generator="off", workers="inline", **given)
        _run(_ping(settings))
        warmer, concurrency = local_warmer(settings), min(_LOCAL_IMAGES, settings.queue_images)
    with progress_bar(console) as progress:
        task = progress.add_task("warm", total=opened.total, broken="")
        broken = 0

        def show(done: int, left_out: int) -> None:
            nonlocal broken
            broken += left_out
            progress.update(task, advance=done, broken=f"{broken} broken" if broken else "")

        async def fill() -> Warmed:
            async with warmer as ready:
                return await run(opened, ready, concurrency=concurrency, progress=show)

        result = _run(fill())
    for key, reason in result.broken[: _SHOWN if console.is_terminal else None]:
        _tell(f"{key}: {reason}")
    if console.is_terminal and len(result.broken) > _SHOWN:
        _tell(f"... and {len(result.broken) - _SHOWN} more")
    _tell(f"{result.encoded} images encoded, {result.known} known already, {len(result.broken)} broken")
    raise typer.Exit(SOME_BROKEN if result.broken else 0)


@cache.command()
def purge(
    revision: Annotated[str | None, typer.Option(help="Codes of this revision of a tokenizer.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Codes of the tokenizer of this name.")] = None,
    all_of_namespace: Annotated[bool, typer.Option("--all-of-namespace", help="Codes of all tokenizers.")] = False,
    url: RedisUrl = None,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
) -> None:
    """Remove codes from the cache, without holding Redis up. Other namespaces and revisions are not touched."""
    from service.cache.purging import Selection, count_codes, purge_codes

    if all_of_namespace == (revision is not None or tokenizer is not None):
        raise CommandError("say what to remove: --revision and/or --tokenizer, or --all-of-namespace")
    settings = _settings(url, namespace)
    selection = Selection(settings.cache_namespace, tokenizer, revision)
    asks = sys.stdin.isatty() and not yes
    if dry_run or asks:

        async def count() -> int:
            async with _redis(settings) as client:
                return await count_codes(client, selection)

        found = _run(count())
        typer.echo(f"{found} keys of {_named(selection)}")
        if dry_run or not found:
            return
        typer.confirm("Remove them?", abort=True)

    async def remove() -> int:
        async with _redis(settings) as client:
            return await purge_codes(client, selection)

    typer.echo(f"{_run(remove())} keys of {_named(selection)} removed")


def _named(selection: Selection) -> str:
    parts = [f"namespace {selection.namespace}"]
    parts += [f"tokenizer {selection.tokenizer}"] if selection.tokenizer is not None else []
    parts += [f"revision {selection.revision}"] if selection.revision is not None else []
    return ", ".join(parts)


def _settings(url: str | None, namespace: str | None, **others: Any) -> Settings:
    """Those of the service, with a Redis that is asked patiently and alone."""
    given = {"redis_url": url, "cache_namespace": namespace}
    patient: dict[str, Any] = {"cache": "redis", "cache_front_entries": 0, "redis_timeout": 1.0}
    patient |= {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**patient, **others)
    except ValidationError as error:
        raise CommandError(invalid_settings(error)) from None


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[RedisClient]:
    from service.cache.redis.connection import connect, disconnect

    assert settings.redis_url is not None  # noqa: S101  _settings has seen to it
    client = connect(settings.redis_url.get_secret_value(), socket_timeout=_PATIENCE)
    try:
        yield client
    finally:
        await disconnect(client)


async def _ping(settings: Settings) -> None:
    async with _redis(settings) as client:
        await client.ping()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises ``CommandError`` where Redis or a service does not do its part."""
    from redis.exceptions import RedisError

    from service.client.errors import TiTokError

    try:
        return asyncio.run(work)
    except RedisError as error:
        raise CommandError(f"Redis: {error or type(error).__name__}") from None
    except (TiTokError, OSError) as error:
        raise CommandError(str(error)) from None


def _show(statistics: CacheStatistics) -> None:
    table = Table(title=f"Codes of namespace {statistics.namespace}", title_justify="left")
    for name in ("tokenizer", "revision"):
        table.add_column(name)
    for name in ("uploads", "pixels", "leases", "bytes a key", "bytes", "sampled", "ends in"):
        table.add_column(name, justify="right")
    for revision in statistics.revisions:
        table.add_row(
            revision.tokenizer,
            revision.revision,
            f"{revision.uploads:,}",
            f"{revision.pixels:,}",
            f"{revision.leases:,}",
            f"{revision.mean_bytes:.0f}",
            f"{revision.bytes:,}",
            f"{revision.sampled:,}",
            _ends(revision),
        )
    output = Console()
    if not output.is_terminal:
        output = Console(width=_WIDE)
    output.print(table)
    if statistics.revisions:
        output.print("bytes: MEMORY USAGE of the keys sampled, times the number of keys; ends in: of the keys sampled")
    if statistics.others:
        output.print(f"{statistics.others:,} keys of the namespace are no codes")
    for server in statistics.servers:
        output.print(_described(server), highlight=False)


def _ends(revision: RevisionStatistics) -> str:
    if revision.ttl is None:
        return "never"
    shortest, median, longest = map(_duration, revision.ttl)
    never = f", {revision.without_ttl} never" if revision.without_ttl else ""
    return f"{shortest} .. {median} .. {longest}{never}"


def _duration(seconds: int) -> str:
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds} s"


def _described(server: ServerInfo) -> str:
    if not server.version:
        return "The user may not ask the server about itself (+info)."
    bound = f"maxmemory {server.maxmemory:,} bytes" if server.maxmemory else "no maxmemory"
    return f"{server.version}: {server.used_memory:,} bytes used, {bound}, policy {server.policy}"


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
