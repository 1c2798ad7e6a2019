"""Redis URLs of every form, against real servers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme

from service.cache.keys import LEASE
from service.cache.purging import Selection, purge_codes
from service.cache.redis.checking import failing_commands
from service.cache.redis.connection import connect, disconnect
from service.cache.redis_cache import RedisCache
from service.cache.statistics import collect_statistics
from tests.service.cache.conftest import FakeObserver, until_known
from tests.service.cache.redis_server import RedisServer
from tests.service.cache.test_contract import entry

pytestmark = pytest.mark.anyio

Open = Callable[..., RedisCache]
Launch = Callable[..., RedisServer]

ENTRIES = [entry(number) for number in range(20)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts servers that listen on TCP ports."""
    servers: list[RedisServer] = []

    def launch(name: str, *options: str, configuration: Path | None = None) -> RedisServer:
        folder = tmp_path / name
        folder.mkdir()
        servers.append(RedisServer(folder, *options, has_socket=False, configuration=configuration))
        servers[-1].launch()
        return servers[-1]

    yield launch
    for server in servers:
        server.kill()


async def works(cache: RedisCache) -> bool:
    await cache.put_many(ENTRIES)
    await until_known(cache, *(key for key, _ in ENTRIES))
    return await cache.get_many([key for key, _ in ENTRIES]) == [code for _, code in ENTRIES]


async def test_a_user_with_a_password_and_a_database(launch: Launch, open_redis: Open, observer: FakeObserver) -> None:
    port = free_port()
    rules = "user titok on >p:ss ~titok:* +@read +@write +@connection -@dangerous"
    server = launch("acl", "--port", str(port), "--requirepass", "root", *(f"--{rules}".split(" ")))
    with redis.Redis(port=port, password="root") as client:  # noqa: S106
        server.wait_for(client)
        cache = open_redis(f"redis://titok:p%3Ass@127.0.0.1:{port}/3")
        cache.connect()
        while observer.successes["probe"] == 0:  # noqa: ASYNC110  another process does it
            await asyncio.sleep(0.01)
        assert await works(cache)
        assert client.info("keyspace").keys() == {"db3"}
    stranger = open_redis(f"redis://titok:wrong@127.0.0.1:{port}/3")
    assert await stranger.get_many([ENTRIES[0][0]]) == [None]
    assert sum(observer.failures.values()) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The certificate of an authority that no system trusts, and this machine's certificate from it, with its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(authority_file := tmp_path / "authority.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(server_file := tmp_path / "server.pem")
    return authority_file, server_file


async def test_tls_certificates_are_verified(
    launch: Launch, open_redis: Open, observer: FakeObserver, certificate: tuple[Path, Path]
) -> None:
    trusted, own = certificate
    port = free_port()
    options = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(own), "--tls-key-file", str(own), "--tls-ca-cert-file", str(trusted)]
    server = launch("tls", *options)
    with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(trusted)) as client:
        server.wait_for(client)
    assert await works(open_redis(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}"))
    trusting_no_one = open_redis(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ssl.get_default_verify_paths().cafile}")
    assert await trusting_no_one.get_many([ENTRIES[0][0]]) == [None]
    assert sum(observer.failures.values()) == 1


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "TLS"])
async def test_the_master_that_a_sentinel_with_a_password_names(
    launch: Launch, open_redis: Open, tmp_path: Path, certificate: tuple[Path, Path], has_tls: bool
) -> None:
    port, sentinel_port = free_port(), free_port()
    server = launch("master", "--port", str(port), "--requirepass", "of-master")
    with redis.Redis(port=port, password="of-master") as client:  # noqa: S106
        server.wait_for(client)
    trusted, own = certificate
    lines = [f"port {sentinel_port}"]
    if has_tls:
        lines = ["port 0", f"tls-port {sentinel_port}", "tls-auth-clients no", f"tls-ca-cert-file {trusted}"]
        lines += [f"tls-cert-file {own}", f"tls-key-file {own}"]
    lines += [f"sentinel monitor codes 127.0.0.1 {port} 1", "sentinel auth-pass codes of-master"]
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text("\n".join([*lines, "requirepass of-sentinel", ""]))
    sentinel = launch("sentinel", "--sentinel", configuration=configuration)
    tls = {"ssl": True, "ssl_ca_certs": str(trusted)} if has_tls else {}
    with redis.Redis(port=sentinel_port, password="of-sentinel", **tls) as client:  # type: ignore[arg-type]  # noqa: S106
        sentinel.wait_for(client)
    options = f"&sentinel_ssl=true&sentinel_ssl_ca_certs={trusted}" if has_tls else ""
    url = f"redis+sentinel://:of-master@127.0.0.1:{sentinel_port}/codes/2?sentinel_password="
    assert await works(open_redis(url + "of-sentinel" + options))
    [absent, *_] = await failing_commands(url + "wrong" + options, "titok")
    assert "No master found" in absent
    assert "of-master" not in absent


async def test_connections_that_redis_closed_while_idle_are_replaced(
    launch: Launch, open_redis: Open, observer: FakeObserver
) -> None:
    port = free_port()
    server = launch("closing", "--port", str(port))
    with redis.Redis(port=port) as client:
        server.wait_for(client)
        cache = open_redis(f"redis://127.0.0.1:{port}")
        for _ in range(3):
            assert await works(cache)
            client.execute_command("CLIENT KILL TYPE normal")
            await asyncio.sleep(0.01)  # the end of the connection is on its way
    assert not observer.failures


async def test_tls_to_a_plain_port_is_told(launch: Launch, open_redis: Open) -> None:
    port = free_port()
    server = launch("plain", "--port", str(port))
    with redis.Redis(port=port) as client:
        server.wait_for(client)
    cache = open_redis(f"rediss://127.0.0.1:{port}")
    cache.connect()
    while cache.status.failure is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert cache.status.failure == "probe: Timeout connecting to server"  # it waits for a line of plain text


async def test_a_cluster_with_keys_in_many_slots(launch: Launch, open_redis: Open) -> None:
    port = free_port()
    node = launch("node", "--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with redis.Redis(port=port) as client:
        node.wait_for(client)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            pass
        assert await works(open_redis(f"redis+cluster://127.0.0.1:{port}"))
        assert client.dbsize() == len(ENTRIES)
        leased = open_redis(f"redis+cluster://127.0.0.1:{port}", lease=60)
        names = [key + b"0" for key, _ in ENTRIES[:2]]
        assert all(claim.is_own for claim in await leased.claim_many(names))
        await leased.release_many(names)
        while any(client.exists(name + LEASE) for name in names):  # noqa: ASYNC110  another process does it
            await asyncio.sleep(0)


async def test_every_primary_of_a_cluster_is_counted_and_purged(launch: Launch, open_redis: Open) -> None:
    ports = [free_port(), free_port()]
    buses = [free_port(), free_port()]
    clients = [redis.Redis(port=port) for port in ports]
    for number, (port, bus) in enumerate(zip(ports, buses, strict=True)):
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
        launch(f"node-{number}", "--port", str(port), *options).wait_for(clients[number])
    clients[0].execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    clients[1].execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[1], buses[1])
    while {client.execute_command("CLUSTER INFO")["cluster_state"] for client in clients} != {"ok"}:
        pass
    url = f"redis+cluster://127.0.0.1:{ports[0]}"
    assert await works(open_redis(url))
    assert all(client.dbsize() for client in clients)
    client = connect(url, socket_timeout=10)
    statistics = await collect_statistics(client, "titok", sample=5)
    assert [(revision.uploads, revision.sampled) for revision in statistics.revisions] == [(len(ENTRIES), 5)]
    assert len(statistics.servers) == 2
    assert await purge_codes(client, Selection("titok")) == len(ENTRIES)
    await disconnect(client)
    for opened in clients:
        assert opened.dbsize() == 0
        opened.close()
