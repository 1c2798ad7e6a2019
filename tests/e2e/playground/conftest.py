"""Chromium, and pages of the playground in it; a message on a page's console fails its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Server
from tests.e2e.playground.browser import (
    DESKTOP,
    PATIENCE,
    Visit,
    ready,
)
from tests.programs import require_program


@pytest.fixture(scope="package")
def server(exact_server: Server) -> Server:
    return exact_server


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60.0) as opened:
        yield opened


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = require_program("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def visits(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a page; all that the browser complains of, and every request to another host, is a failure."""
    expect.set_options(timeout=PATIENCE)

    def visit(url: str, **options: Any) -> Visit:
        context = browser.new_context(
            base_url=url, permissions=["clipboard-read", "clipboard-write"], **(DESKTOP | options)
        )
        context.set_default_timeout(PATIENCE)
        made = Visit(context.new_page())
        page, complaints = made.page, made.complaints
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((url, "blob:")) else complaints.append(request.url),
        )
        page.goto("/")
        return made

    return visit


@pytest.fixture
def visit(visits: Callable[..., Visit], server: Server) -> Iterator[Visit]:
    opened = visits(server.url)
    ready(opened.page)
    yield opened
    opened.page.context.close()
    assert opened.complaints == []


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page
