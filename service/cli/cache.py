"""``titok cache stats``, ``warm``, ``purge``: maintains the cache of codes in Redis."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.table import Table

from models.errors import NoImagesError
from service.cli.options import (
    ApiKey,
    CommandError,
    ImageColumn,
    ImageExtension,
    Json,
    Split,
    Tokenizer,
    Url,
    Weights,
    extensions_of,
)
from service.cli.terminal import SOME_BROKEN, console, image_progress, output_console, say
from service.redis_url import RedisUrl
from service.settings import Settings, invalid_settings

if TYPE_CHECKING:
    from service.bulk.entries import Source
    from service.cache.purging import Selection
    from service.cache.redis.connection import RedisClient
    from service.cache.statistics import CacheStatistics, RevisionStatistics, ServerInfo
    from service.cli.cache_warming import CachingEncoder, WarmingResult

T = TypeVar("T")

cache = typer.Typer(help="Inspect, fill and purge the cache of codes in Redis.", no_args_is_help=True)

_SOCKET_TIMEOUT = 10.0  # seconds
_REMOTE_REQUESTS, _LOCAL_IMAGES = 16, 64  # at a time
_BROKEN_SHOWN = 20  # broken images listed on a terminal

_REDIS_HELP = "URL of Redis, such as redis://127.0.0.1:6379/0."
RedisUrlOption = Annotated[
    str | None,
    typer.Option("--url", "--redis-url", metavar="REDIS_URL", help=_REDIS_HELP, envvar="TITOK_REDIS_URL"),
]
Namespace = Annotated[str | None, typer.Option(help="Prefix of the keys.", envvar="TITOK_CACHE_NAMESPACE")]


@cache.command()
def stats(
    url: RedisUrlOption = None,
    namespace: Namespace = None,
    sample: Annotated[int, typer.Option(min=1, help="Keys per revision to sample for memory and time to live.")] = 1000,
    as_json: Json = False,
) -> None:
    """Show the cached codes by tokenizer revision, their memory and time to live, and the limits of Redis.

    Example:

        titok cache stats --url redis://127.0.0.1:6379/0
    """
    from service.cache.statistics import collect_statistics

    settings = _settings(url, namespace)
    statistics = _with_redis(
        settings, lambda client: collect_statistics(client, settings.cache_namespace, sample=sample)
    )
    if as_json:
        document = asdict(statistics)
        for revision, values in zip(statistics.revisions, document["revisions"], strict=True):
            values |= {"keys": revision.keys, "bytes": revision.bytes}
        typer.echo(json.dumps(document, indent=2))
    else:
        _print_statistics(statistics)


@cache.command()
def warm(
    source: Annotated[
        str, typer.Argument(help="Folder of images, WebDataset tars or Parquet files, as for titok tokenize.")
    ],
    split: Split = None,
    image_extension: ImageExtension = None,
    image_column: ImageColumn = None,
    url: Url = None,
    api_key: ApiKey = None,
    redis_url: Annotated[
        str | None, typer.Option(metavar="REDIS_URL", help=_REDIS_HELP, envvar="TITOK_REDIS_URL")
    ] = None,
    namespace: Namespace = None,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    devices: Annotated[
        str | None, typer.Option("--device", "--devices", help="auto, cpu, cuda or cuda:N, without --url.")
    ] = None,
) -> None:
    """Fill the cache with the codes of a dataset.

    With --url, the service encodes the images and fills its own cache. Otherwise a model is loaded here, with the settings
    of the service, and writes to Redis. Cached images are skipped. Broken images are listed; the exit code is then 3.

    Example:

        titok cache warm photos/ --url http://127.0.0.1:8000
    """
    from service.bulk.sources import SourceOptions, open_source  # torch is slow to import
    from service.cli.cache_warming import local_encoder, remote_encoder

    extensions = extensions_of(image_extension)
    opened = open_source(
        source,
        SourceOptions(split=split, image_column=image_column, image_extensions=extensions, with_labels=False),
    )
    if url is not None:
        encoder, concurrency = remote_encoder(url, api_key=api_key, concurrency=_REMOTE_REQUESTS), _REMOTE_REQUESTS
    else:
        options = {"tokenizer": tokenizer, "tokenizer_weights": weights, "devices": devices}
        others: dict[str, str | None] = {"generator": "off", "workers": "inline", **options}
        settings = _settings(redis_url, namespace, option="--url of a service, or --redis-url", **others)
        _with_redis(settings, lambda client: client.ping())
        encoder, concurrency = local_encoder(settings), min(_LOCAL_IMAGES, settings.queue_images)
    result = _fill(opened, encoder, concurrency)
    if not (result.encoded or result.cached or result.broken):
        raise NoImagesError(source)
    _print_broken(result.broken)
    say(f"{result.encoded} images encoded, {result.cached} already cached, {len(result.broken)} broken")
    raise typer.Exit(SOME_BROKEN if result.broken else 0)


def _fill(source: Source, encoder: AbstractAsyncContextManager[CachingEncoder], concurrency: int) -> WarmingResult:
    from service.cli.cache_warming import warm_cache
    from service.client.errors import TiTokError

    with image_progress("warm", source.total) as progress:

        async def fill() -> WarmingResult:
            async with encoder as ready:
                return await warm_cache(source, ready, concurrency=concurrency, progress=progress)

        try:
            return asyncio.run(fill())
        except (TiTokError, OSError) as error:
            raise CommandError(str(error)) from None


@cache.command()
def purge(
    revision: Annotated[str | None, typer.Option(help="Remove codes of this tokenizer revision.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Remove codes of this tokenizer.")] = None,
    all_of_namespace: Annotated[
        bool, typer.Option("--all-of-namespace", help="Remove codes of all tokenizers.")
    ] = False,
    url: RedisUrlOption = None,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the keys without removing them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove codes from the cache, without blocking Redis. Keeps other namespaces and revisions.

    Example:

        titok cache purge --revision 9d73d749cf51 --dry-run
    """
    from service.cache.purging import Selection, count_codes, purge_codes

    if all_of_namespace == (revision is not None or tokenizer is not None):
        raise CommandError("specify what to remove: --revision and/or --tokenizer, or --all-of-namespace")
    settings = _settings(url, namespace)
    selection = Selection(settings.cache_namespace, tokenizer, revision)
    if dry_run or (sys.stdin.isatty() and not yes):
        found = _with_redis(settings, lambda client: count_codes(client, selection))
        typer.echo(f"{found} keys of {_described(selection)}")
        if dry_run or not found:
            return
        typer.confirm("Remove them?", abort=True)
    removed = _with_redis(settings, lambda client: purge_codes(client, selection))
    typer.echo(f"{removed} keys of {_described(selection)} removed")


def _described(selection: Selection) -> str:
    parts = {"namespace": selection.namespace, "tokenizer": selection.tokenizer, "revision": selection.revision}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


def _settings(redis_url: str | None, namespace: str | None, *, option: str = "--url", **others: str | None) -> Settings:
    """The service's settings with Redis as the only cache, a longer timeout, and the options that are not None."""
    options = {"redis_url": redis_url, "cache_namespace": namespace, **others}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not redis_url:
        raise CommandError(f"no Redis is named: give {option} redis://HOST:6379/0, or set TITOK_REDIS_URL")
    try:
        return Settings(cache="redis", cache_front_entries=0, redis_timeout=1.0, **given)
    except ValidationError as error:
        raise CommandError(invalid_settings(error)) from None


def _with_redis(settings: Settings, function: Callable[[RedisClient], Awaitable[T]]) -> T:
    """Calls an asynchronous function with a client. Raises ``CommandError`` for errors of Redis."""
    from redis.exceptions import RedisError

    from service.cache.redis.connection import connect, disconnect

    assert settings.redis_url is not None  # noqa: S101  cache="redis" requires it
    url = settings.redis_url.get_secret_value()

    async def run() -> T:
        client = connect(url, socket_timeout=_SOCKET_TIMEOUT)
        try:
            return await function(client)
        except (RedisError, OSError) as error:
            raise CommandError(f"Redis: {RedisUrl.parse(url).words_of(error)}") from None
        finally:
            await disconnect(client)

    return asyncio.run(run())


def _print_broken(broken: list[tuple[str, str]]) -> None:
    shown = broken[:_BROKEN_SHOWN] if console.is_terminal else broken
    for key, reason in shown:
        say(f"{key}: {reason}")
    if len(broken) > len(shown):
        say(f"... and {len(broken) - len(shown)} more")


def _print_statistics(statistics: CacheStatistics) -> None:
    table = Table(title=f"Codes of namespace {statistics.namespace}", title_justify="left")
    for name in ("tokenizer", "revision"):
        table.add_column(name)
    for name in ("uploads", "pixels", "leases", "bytes per key", "bytes", "sampled", "expires in"):
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
            _expiry(revision),
        )
    output = output_console()
    output.print(table)
    if statistics.revisions:
        output.print("bytes: mean MEMORY USAGE of the sampled keys times the number of keys; expires in: sampled keys")
    if statistics.others:
        output.print(f"{statistics.others:,} keys of the namespace are not codes")
    for server in statistics.servers:
        output.print(_server(server))


def _expiry(revision: RevisionStatistics) -> str:
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


def _server(server: ServerInfo) -> str:
    if not server.version:
        return "The Redis user may not read the server's state (needs +info)."
    limit = f"maxmemory {server.maxmemory:,} bytes" if server.maxmemory else "no maxmemory"
    return f"{server.version}: {server.used_memory:,} bytes used, {limit}, policy {server.policy}"
