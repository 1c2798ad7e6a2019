"""``titok cache`` on a Redis server that a running service uses too."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.conftest import QUICK_START, Server, end, start_server
from tests.in_process import run_in_process
from tests.service.cache.redis_server import RedisServer

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.kill()


@pytest.fixture(autouse=True)
def empty(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.flushall()


@pytest.fixture(scope="module")
def shared(redis_server: RedisServer) -> Iterator[Server]:
    """A service without a cache in memory, with a long Redis timeout, so that a busy machine turns no hit into a miss."""
    server = start_server(
        **QUICK_START, redis_url=redis_server.url, cache_front_entries="0", redis_timeout="1", generator="off"
    )
    server.wait_until_ready()
    yield server
    end(server)


def crops(photograph: Image.Image, count: int) -> list[bytes]:
    files = []
    for number in range(count):
        buffer = io.BytesIO()
        photograph.crop((number, number, number + 160, number + 160)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture
def folder(photographs: list[Image.Image], tmp_path: Path) -> Path:
    """Five photographs, one of them twice, and two broken files."""
    place = tmp_path / "photos"
    place.mkdir()
    for number, image in enumerate(crops(photographs[0], 5)):
        (place / f"{number}.jpg").write_bytes(image)
    (place / "same.jpg").write_bytes((place / "0.jpg").read_bytes())
    (place / "broken.jpg").write_bytes(b"no image")
    (place / "empty.png").write_bytes(b"")
    return place


def run(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """``titok cache`` with text instead of bytes."""
    given = {f"TITOK_{name.upper()}": value for name, value in settings.items()}
    ended = run_in_process("cache", *arguments, **given)
    return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def encode(server: Server, image: bytes) -> Any:
    answer = httpx.post(f"{server.url}/v1/encode", content=image, headers=JPEG, timeout=60)
    return answer.raise_for_status().json()["data"][0]


def test_warming_with_a_local_model_fills_the_cache_of_the_service(
    folder: Path, redis_server: RedisServer, shared: Server
) -> None:
    ended = run("warm", folder, redis_url=redis_server.url)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.splitlines()[-1] == "5 images encoded, 1 already cached, 2 broken"
    named = [line.partition(":")[0] for line in ended.stderr.splitlines()[:-1]]
    assert sorted(named) == ["broken", "empty"]
    images = [(folder / f"{number}.jpg").read_bytes() for number in range(5)]
    warmed = [encode(shared, image) for image in images]
    assert all(image["cached"] for image in warmed)
    with redis_server.client() as client:
        assert client.dbsize() == 10  # by their bytes and by their pixels
        client.flushall()
    assert [encode(shared, image) for image in images] == [{**image, "cached": False} for image in warmed]


def test_warming_through_a_service_fills_its_cache(
    redis_server: RedisServer, shared: Server, photographs: list[Image.Image], tmp_path: Path
) -> None:
    images = crops(photographs[1], 6)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for number, image in enumerate([*images, b"no image"]):
            member = tarfile.TarInfo(f"{number:03d}.jpg")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    before = encode(shared, images[0])
    while not encode(shared, images[0])["cached"]:
        pass
    ended = run("warm", tmp_path / "set.tar", "--url", shared.url)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.splitlines()[-1] == "5 images encoded, 1 already cached, 1 broken"
    assert ended.stderr.startswith("006: ")
    assert encode(shared, images[0]) == {**before, "cached": True}
    ended = run("warm", tmp_path / "set.tar", "--url", shared.url)
    assert ended.stderr.splitlines()[-1] == "0 images encoded, 6 already cached, 1 broken"


def test_stats_print_a_table_or_json(redis_server: RedisServer, shared: Server, jpeg: bytes) -> None:
    known = encode(shared, jpeg)
    while not encode(shared, jpeg)["cached"]:
        pass
    assert not known["cached"]
    document = json.loads(run("stats", "--json", "--url", redis_server.url).stdout)
    [revision] = document["revisions"]
    assert (revision["tokenizer"], revision["uploads"], revision["pixels"], revision["keys"]) == (
        "titok-mini-32",
        1,
        1,
        2,
    )
    assert revision["sampled"] == 2
    assert 200 < revision["bytes"] < 500
    assert document["servers"][0]["policy"] == "noeviction"
    table = run("stats", redis_url=redis_server.url).stdout
    assert revision["revision"] in table
    assert "no maxmemory, policy noeviction" in table
    assert json.loads(run("stats", "--json", "--namespace", "b", redis_url=redis_server.url).stdout)["revisions"] == []


def test_purge_counts_keys_and_asks_for_confirmation_on_a_terminal(
    titok: Path, redis_server: RedisServer, shared: Server, jpeg: bytes
) -> None:
    encode(shared, jpeg)
    while not encode(shared, jpeg)["cached"]:
        pass
    url = {"redis_url": redis_server.url}
    assert run("purge", "--revision", "another", **url).stdout.startswith("0 keys of namespace titok")
    assert run("purge", "--tokenizer", "titok-mini-32", "--dry-run", **url).stdout.startswith("2 keys of")
    terminal, end_of_it = pty.openpty()
    with redis_server.client() as client:
        for answer, left in ((b"n\n", 2), (b"y\n", 0)):
            process = subprocess.Popen(
                [titok, "cache", "purge", "--all-of-namespace", "--url", redis_server.url],
                stdin=end_of_it,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            os.write(terminal, answer)
            output, _ = process.communicate(timeout=60)
            assert output.startswith(b"2 keys of namespace titok\nRemove them?")
            assert (process.returncode == 0) is (left == 0)
            assert client.dbsize() == left
    os.close(terminal)
    os.close(end_of_it)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats"], "or set TITOK_REDIS_URL"),
        (["stats", "--url", "http://localhost"], "a Redis URL begins with"),
        (["stats", "--url", "unix:///nowhere.sock"], "Redis: "),
        (["purge", "--url", "unix:///nowhere.sock"], "specify what to remove"),
        (["warm", "/nowhere", "--redis-url", "unix:///nowhere.sock"], "there is nothing at /nowhere"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
