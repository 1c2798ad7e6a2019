"""The playground's files as they are served: what a browser may do with them, and when it need not ask."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import service.api
from service.settings import Settings
from tests.service.application import served

FOLDER = Path(service.api.__file__).parent / "playground"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.*") if path.suffix != ".md")
HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}

pytestmark = pytest.mark.anyio


def client_of(**settings: bool) -> httpx.AsyncClient:
    """Of an application whose engine is never started: the page needs none."""
    app = served(Settings(**settings, workers="inline", api_keys="secret"), lambda _: pytest.fail("opened"))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of() as opened:
        yield opened


async def test_every_file_is_there_without_a_key_and_under_a_strict_policy(client: httpx.AsyncClient) -> None:
    assert {"index.html", "style.css", "playground.js", "samples/coffee.jpg"} < set(FILES)
    for address in ["/", *(f"/playground/{name}" for name in FILES)]:
        answer = await client.get(address, headers=HTML)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_files_have_the_types_that_browsers_insist_on(client: httpx.AsyncClient) -> None:
    types = {name: (await client.get(f"/playground/{name}")).headers["content-type"] for name in FILES}
    assert types["playground.js"] == "text/javascript; charset=utf-8"
    assert types["style.css"] == "text/css; charset=utf-8"
    assert types["icon.svg"] == "image/svg+xml"
    assert types["samples/cat.jpg"] == "image/jpeg"


async def test_a_file_that_a_browser_has_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/playground/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/playground/style.css", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = await client.get("/playground/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


async def test_what_is_no_file_of_the_page_is_not_found(client: httpx.AsyncClient) -> None:
    for name in ("nothing.js", "samples", "..%2Fsettings.py", "%2e%2e/app.py", "/etc/passwd"):
        answer = await client.get(f"/playground/{name}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_client_that_accepts_json_gets_a_list_of_links(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", headers={"Accept": "application/json"})
    assert answer.json()["documentation"] == "/docs"
    assert answer.headers["vary"] == "Accept"
    assert (await client.get("/")).headers["content-type"] == "text/html; charset=utf-8"
    assert (await client.get("/", headers={"Accept": "image/png"})).status_code == 406
    assert (await client.head("/")).content == b""


async def test_the_page_names_no_other_host_and_holds_no_inline_script_or_style() -> None:
    for name in FILES:
        if name.endswith((".html", ".css", ".js")):
            text = (FOLDER / name).read_text()
            assert "http://" not in text
            assert "https://" not in text
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|<script(?! type=\"module\" src=)|\s(style|on\w+)=", page)


async def test_the_page_can_be_turned_off() -> None:
    async with client_of(playground=False) as client:
        for address in ("/", "/playground/style.css"):
            assert (await client.get(address, headers=HTML)).status_code == 404
