"""Keys of a running service with two front ends, from a file that changes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.api.access.keys import ApiKey, new_key
from tests.e2e.conftest import TITOK, Server, end, start_server

PATIENCE = 60.0
PNG = {"Content-Type": "image/png"}
CODE = "A" * 64
Status = Callable[..., int]


class KeysFile:
    """A file of keys, and the keys in clear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ann, self.bob = new_key(), new_key()

    def write(self, *keys: ApiKey) -> None:
        self.path.write_text("\n".join(key.table() for key in keys))

    def write_ann(self) -> None:
        self.write(ApiKey.plain(self.ann, name="ann", roles=["decode"]))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeysFile:
    made = KeysFile(tmp_path_factory.mktemp("keys") / "keys.toml")
    made.write_ann()
    return made


@pytest.fixture(scope="module")
def keyed(keys: KeysFile) -> Iterator[Server]:
    started = start_server(
        max_batch_size="4", generator="off", threads="1", front_ends="2", api_keys_file=str(keys.path)
    )
    started.wait_until_ready()
    yield started
    end(started)


@pytest.fixture(scope="module")
def status(keyed: Server) -> Iterator[Status]:
    """The status of a path for a key, on a connection of its own, which either front end may take."""
    with httpx.Client(base_url=keyed.url, headers={"Connection": "close"}, timeout=PATIENCE) as client:
        yield lambda key, path="/v1/models": client.get(path, headers={"X-API-Key": key}).status_code


def until_everywhere(status: Status, key: str, expected: int) -> None:
    """Until forty answers in a row are as expected: both front ends have given some of them."""
    deadline, row = time.monotonic() + PATIENCE, 0
    while row < 40:
        assert time.monotonic() < deadline
        row = row + 1 if status(key) == expected else 0


def test_a_key_opens_what_its_role_allows_and_nothing_else(keyed: Server, status: Status, keys: KeysFile) -> None:
    assert status(keys.ann) == 200
    assert status(keys.bob) == 401
    assert status(keys.ann, f"/v1/images/titok-mini-32/{CODE}.png") == 200
    refused = httpx.post(
        f"{keyed.url}/v1/encode", content=b"x", headers={**PNG, "X-API-Key": keys.ann}, timeout=PATIENCE
    )
    assert refused.status_code == 403


def test_every_front_end_follows_the_file_and_keeps_the_last_good_one(
    keyed: Server, status: Status, keys: KeysFile
) -> None:
    keys.write(ApiKey.plain(keys.bob, name="bob", roles=["encode"]))
    until_everywhere(status, keys.bob, 200)
    until_everywhere(status, keys.ann, 401)
    keys.path.write_text("[[keys]\n")
    deadline = time.monotonic() + PATIENCE
    while sum("the keys read before stay in force" in line for line in keyed.log) < 2:
        assert time.monotonic() < deadline
        assert status(keys.bob) == 200
    keys.write_ann()
    until_everywhere(status, keys.ann, 200)


def test_metrics_and_health_of_the_processes_are_on_the_admin_port_alone(
    keyed: Server, status: Status, keys: KeysFile
) -> None:
    for path in ("/metrics", "/admin", "/debug"):
        assert status(keys.ann, path) == 404
    assert httpx.get(f"{keyed.admin_url}/metrics").status_code == 200
    assert "processes" not in httpx.get(f"{keyed.url}/healthz").json()
    for path in ("/v1/models", "/v1/encode", "/docs"):
        assert httpx.get(f"{keyed.admin_url}{path}").status_code == 404


def test_no_key_and_no_digest_is_ever_logged(keyed: Server, keys: KeysFile) -> None:
    told = "".join(keyed.log)
    for secret in (keys.ann, keys.bob):
        assert secret not in told
        assert ApiKey.plain(secret, name="x").sha256 not in told
        for pid in keyed.pids():
            assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_service_does_not_start_with_keys_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for content, message in ((None, "No such file"), ('[[keys]]\nname = "ann"\n', "keys.0.roles: Field required")):
        if content is not None:
            path.write_text(content)
        command = [TITOK, "serve", "--port", "0", "--admin-port", "0"]
        ended = subprocess.run(
            command,
            env=os.environ | {"TITOK_API_KEYS_FILE": str(path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
