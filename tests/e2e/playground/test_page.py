"""The page as a whole: codes, keyboard, accessibility, other tokenizers, the API reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from models.checkpoints.configuration import config_document
from models.codes.code_format import CodeFormat
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.training.checkpoints import save_checkpoint
from tests.e2e.conftest import Server
from tests.e2e.playground.browser import (
    DESKTOP,
    PHONE,
    PROJECT,
    Visit,
    decode,
    encode,
    expect_picture,
    ready,
    set_slider,
)


@pytest.mark.parametrize(("count", "size"), [(32, 4096), (64, 8192), (128, 1000), (5, 7), (3, 65_536)])
def test_the_page_packs_codes_as_the_service_does(page: Page, count: int, size: int) -> None:
    packing = CodeFormat(count, size)
    tokens = torch.randint(size, (4, count), generator=torch.Generator().manual_seed(count)).numpy()
    codes = packing.to_text(tokens)
    packed = page.evaluate(
        """async ([rows, bits]) => {
            const { codeOf, tokensOf } = await import("/playground/code.js");
            const codes = rows.map((row) => codeOf(row, bits));
            return [codes, codes.map((code) => tokensOf(code, bits, rows[0].length))];
        }""",
        [tokens.tolist(), packing.bits],
    )
    assert packed == [codes, tokens.tolist()]


def test_every_control_is_reachable_by_keyboard(page: Page) -> None:
    set_slider(page, "#gen-steps", 2)
    page.click("#gen-start")
    expect(page.locator("#gallery li")).to_have_count(4)
    page.fill("#token-number", "7")
    wanted = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("main a, button, input, select")];
            const stops = (one) => one.checkVisibility() && !one.disabled && (one.type !== "radio" || one.checked);
            const seen = all.filter(stops);
            seen.forEach((one, place) => (one.dataset.stop = place));
            return seen.length;
        }"""
    )
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    stops = []
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.dataset.stop"))
    assert {int(stop) for stop in stops if stop is not None} == set(range(wanted))
    page.locator("#tokens input").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-place")).to_have_text("Token 2 of 32")
    page.locator("#token-slider").focus()
    before = int(page.input_value("#token-slider"))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#token-number")).to_have_value(str(before - 1))


@pytest.mark.parametrize(
    ("name", "options"),
    [("desktop", {"color_scheme": "light"}), ("dark", {"color_scheme": "dark"}), ("phone", PHONE)],
)
def test_axe_finds_no_violation_in_light_dark_and_phone_layouts(
    visits: Callable[..., Visit], server: Server, name: str, options: dict[str, Any]
) -> None:
    opened = visits(server.url, **options)
    page = opened.page
    ready(page)
    if os.environ.get("WRITE_SCREENSHOTS"):
        page.screenshot(path=PROJECT / "docs" / "images" / f"playground-{name}.png")
    page.fill("#gen-class", "sea")
    page.click("#gen-start")
    expect(page.locator("#gallery li")).to_have_count(4)
    page.fill("#code-field", "short")
    page.press("#code-field", "Enter")
    expect(page.locator("#image-problem")).to_be_visible()
    opened.forgive(422)
    page.locator("#swaps button").first.click()
    page.fill("#token-number", "7")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    width = (DESKTOP | options)["viewport"]["width"]  # a phone's window grows with what is too wide for it
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.context.close()
    assert opened.complaints == []


def test_the_page_works_with_another_tokenizer_a_key_and_no_generator(
    visits: Callable[..., Visit], serve: Callable[..., Server], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = TransformerSize(width=32, layers=1, heads=2)
    config = TiTokConfig(
        num_latent_tokens=128,
        min_latent_tokens=4,
        codebook_size=5000,
        token_size=5,
        encoder=size,
        decoder=size,
        image_size=64,
        is_legacy=False,
        finetune_decoder=False,
    )
    save_checkpoint(tmp_path, config_document(config), TiTok(config).state_dict())
    server = serve(tokenizer="mine", tokenizer_weights=str(tmp_path), api_keys="sesame")
    server.wait_until_ready()
    opened = visits(server.url)
    page = opened.page
    expect(page.locator("#page-problem")).to_contain_text("The API key is missing")
    opened.forgive(401)
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#page-problem")).to_contain_text("The API key is unknown")
    opened.forgive(401)
    page.fill("#key", "sesame")
    page.press("#key", "Enter")
    expect(page.locator("#tokens .cell")).to_have_count(128)
    expect(page.locator("#swaps button")).to_have_count(128)
    expect(page.locator("#size-code")).to_have_text("208 bytes")
    expect(page.locator("h1")).to_have_text("An image in 128 tokens")
    expect(page.locator("#token-slider")).to_have_attribute("max", "4999")
    expect(page.locator("#no-generator")).to_be_visible()
    expect(page.locator("#length-field")).to_be_visible()
    expect(page.locator("#generator")).to_be_hidden()
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "sesame"}, timeout=60) as client:
        tokens = encode(client, "coffee")
        assert page.inner_text("#code") == CodeFormat(128, 5000).to_text([tokens])[0]
        page.fill("#token-number", "4999")
        expect_picture(page, "#image-result", decode(client, [4999, *tokens[1:]]))
        expect(page.locator("#length")).to_have_attribute("min", "4")
        set_slider(page, "#length", 8)
        expect_picture(page, "#image-result", decode(client, [4999, *tokens[1:8]]))
        expect(page.locator("#length-value")).to_have_text("8 of 128 tokens, 13 bytes")
        assert page.inner_text("#code") == CodeFormat(8, 5000).to_text([[4999, *tokens[1:8]]])[0]
    page.context.close()
    assert opened.complaints == []


def test_the_api_reference_renders_under_its_content_security_policy(page: Page) -> None:
    page.goto("/docs")
    expect(page.locator("#operations-tokens-encode_v1_encode_post")).to_be_visible()
