"""The operator's own pages: which files are served, and what browsers are told of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.settings import Settings
from tests.service.application import served

pytestmark = pytest.mark.anyio


def client_of(folder: Path | None) -> httpx.AsyncClient:
    """Of an application whose engine is never started: pages need none."""
    settings = Settings(pages_dir=folder, workers="inline", api_keys="secret")
    app = served(settings, lambda _: pytest.fail("opened"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "secret").write_text("outside")
    folder = tmp_path / "pages"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "index.html").write_text("<!doctype html>")
    for name in ("page.js", "module.mjs", "runtime.wasm", "decoder.onnx"):
        (folder / name).write_bytes(b"1")
    (folder / "link").symlink_to(tmp_path / "secret")
    async with client_of(folder) as opened:
        yield opened


async def test_files_need_no_key_and_have_the_types_that_browsers_insist_on(client: httpx.AsyncClient) -> None:
    types = {
        name: (await client.get(f"/pages/{name}")).headers["content-type"]
        for name in ("page.js", "module.mjs", "runtime.wasm", "decoder.onnx", "more/")
    }
    assert types == {
        "page.js": "text/javascript; charset=utf-8",
        "module.mjs": "text/javascript; charset=utf-8",
        "runtime.wasm": "application/wasm",
        "decoder.onnx": "application/octet-stream",
        "more/": "text/html; charset=utf-8",
    }


async def test_pages_may_run_webassembly_and_load_only_what_is_here(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/pages/more/")).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["connect-src"] == "'self'"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"


@pytest.mark.parametrize("path", ["missing.js", "../secret", "%2e%2e/secret", "..%2fsecret", "link"])
async def test_what_is_not_in_the_folder_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(httpx.URL("http://test").copy_with(raw_path=f"/pages/{path}".encode()))
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "outside" not in answer.text


async def test_without_a_folder_there_are_no_pages_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    async with client_of(None) as client:
        assert (await client.get("/pages/")).status_code == 404
    with pytest.raises(ValidationError, match="directory"):
        Settings(pages_dir=tmp_path / "missing")
