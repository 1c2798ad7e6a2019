"""API keys: their formats, the key file, and looking them up."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.api.access.key_store import ReloadingKeyStore, load_keys
from service.api.access.keys import ApiKey, KeySet, new_key, parse_keys_file
from service.api.access.roles import ROLES
from service.cli.main import app
from service.settings import Settings, check_rate

DIGEST = hashlib.sha256(b"ann's key").hexdigest()


def table(name: str, key: str, *roles: str) -> str:
    return ApiKey.plain(key, name=name, roles=roles or ("encode",)).table()  # type: ignore[arg-type]


def test_keys_are_found_by_digest() -> None:
    known_keys = KeySet.from_entries([f"ann:encode+decode:sha256:{DIGEST}:100/second", "plain"])
    ann = known_keys.find("ann's key")
    assert ann is not None
    assert (ann.name, ann.roles, ann.rate) == ("ann", {"encode", "decode"}, "100/second")
    assert known_keys.find(DIGEST) is None
    assert known_keys.find("ann's ke") is None
    assert known_keys.find("") is None
    plain = known_keys.find("plain")
    assert plain is not None
    assert (plain.name, plain.roles) == ("key-2", {"admin"})


def test_admin_includes_every_role() -> None:
    admin, ann = (ApiKey.plain("k", name="x", roles=roles) for roles in (("admin",), ("encode",)))  # type: ignore[arg-type]
    for role in ROLES:
        assert admin.allows(frozenset({role}))
    assert ann.allows(frozenset({"encode"}))
    assert ann.allows(frozenset())
    assert not ann.allows(frozenset({"decode"}))
    assert not ann.allows(frozenset({"encode", "decode"}))


@pytest.mark.parametrize(
    "entry",
    [
        f"ann:encode:SHA256:{DIGEST}",
        f"ann:encode:{DIGEST}",
        f"ann:encodes:sha256:{DIGEST}",
        f"ann::sha256:{DIGEST}",
        f"a b:encode:sha256:{DIGEST}",
        f"ann:encode:sha256:{DIGEST[:-1]}",
        f"ann:encode:sha256:{DIGEST}:100",
    ],
)
def test_a_malformed_hashed_entry_is_an_error_not_a_plain_key(entry: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the message is checked below
        KeySet.from_entries([entry])
    assert DIGEST[:-1] not in str(raised.value)


@pytest.mark.parametrize("entries", [["one", "one"], [f"a:encode:sha256:{DIGEST}", f"b:decode:sha256:{DIGEST}"]])
def test_duplicate_keys_are_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="two keys have the same"):
        KeySet.from_entries(entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[keys]\n", "not TOML"),
        (b"\xff", "not TOML"),
        (b"[[key]]\n", "key: Extra inputs"),
        (b'[[keys]]\nname = "ann"\nroles = ["encode"]\n', "keys.0.sha256: Field required"),
        (table("ann", "k").replace("encode", "encod").encode(), "keys.0.roles"),
        (table("ann", "k").encode() + b'rate = "fast"\n', "keys.0.rate: .*'fast' is no rate"),
        (table("ann", "k").encode() + b'key = "in clear"\n', "keys.0.key: Extra inputs"),
    ],
)
def test_errors_of_a_key_file_name_the_place(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_keys_file(content)


@pytest.mark.parametrize("rate", ["100/second", "5000 per 10 minutes", "1/day", "2 per hour"])
def test_valid_rates(rate: str) -> None:
    assert check_rate(rate) == rate


@pytest.mark.parametrize("rate", ["", "0/second", "100", "100/fortnight", "-1/second", "10/second;20/minute"])
def test_invalid_rates_are_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        check_rate(rate)


def test_keys_new_prints_the_key_once_and_entries_that_parse() -> None:
    ended = CliRunner().invoke(
        app, ["keys", "new", "ann", "--role", "encode", "--role", "decode", "--rate", "9/minute"]
    )
    assert ended.exit_code == 0
    lines = ended.output.splitlines()
    key = lines[1]
    start = lines.index("[[keys]]")
    from_file = parse_keys_file("\n".join(lines[start : start + 5]).encode())
    from_entry = ApiKey.from_entry(lines[-1])
    assert from_file == [from_entry]
    assert KeySet(from_file).find(key) == from_entry
    assert (from_entry.name, from_entry.roles, from_entry.rate) == ("ann", {"encode", "decode"}, "9/minute")
    assert ended.output.count(key) == 1


def test_new_keys_are_long_and_unique() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) >= 48


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_changed_file_is_reloaded_within_a_second_and_an_invalid_one_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(table("ann", "one"))
    store = ReloadingKeyStore(Settings(api_keys="plain", api_keys_file=path), clock=clock)  # type: ignore[arg-type]

    def known(key: str) -> bool:
        clock.now += 1.0
        known_keys = store.current()
        assert known_keys is not None
        return known_keys.find(key) is not None

    assert known("one")
    assert known("plain")
    path.write_text(table("ann", "two"))
    assert known("two")
    assert not known("one")
    with caplog.at_level(logging.ERROR):
        for broken in ("[[keys", table("ann", "plain")):  # the second: a key that the environment has as well
            path.write_text(broken)
            assert known("two")
            assert known("plain")
        path.unlink()
        assert known("two")
        path.write_text("# cut off after the first line\n")
        assert known("two")
        assert store.state == "stale"
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
    assert "stay in force" in caplog.text
    path.write_text(table("ann", "two"))
    assert known("two")
    assert store.state == "ok"
    path.write_text("keys = []")
    assert not known("two")
    assert known("plain")


def test_a_reload_does_not_wait_for_the_next_second(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(table("ann", "one"))
    store = ReloadingKeyStore(Settings(api_keys_file=path), clock=Clock())
    store.reload()
    path.write_text(table("ann", "two"))
    store.reload()
    keys = store.current()
    assert keys is not None
    assert keys.find("two") is not None


def test_the_file_is_read_at_most_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(table("ann", "one"))
    store = ReloadingKeyStore(Settings(api_keys_file=path), clock=clock)
    store.current()
    path.write_text(table("ann", "two"))
    clock.now += 0.9
    known_keys = store.current()
    assert known_keys is not None
    assert known_keys.find("one") is not None


def test_an_unreadable_file_gives_no_keys(tmp_path: Path) -> None:
    store = ReloadingKeyStore(Settings(api_keys_file=tmp_path / "none.toml"))
    assert store.are_required
    assert store.current() is None
    assert store.state == "unreadable"
    with pytest.raises(FileNotFoundError):
        load_keys(Settings(api_keys_file=tmp_path / "none.toml"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        load_keys(Settings(api_keys_file=path))


def test_with_an_empty_file_keys_are_required(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.touch()
    store = ReloadingKeyStore(Settings(api_keys_file=path))
    assert store.are_required
    assert store.current() == KeySet([])
