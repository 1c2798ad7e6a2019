"""An image, its tokens and its code on the playground."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.playground.browser import (
    CODES,
    SAMPLES,
    bring,
    decode,
    encode,
    expect_picture,
    set_slider,
    shown_tokens,
)


@pytest.mark.parametrize("way", ["pick", "drop", "drop beside", "paste", "sample"])
def test_an_image_is_shown_beside_its_reconstruction(page: Page, client: httpx.Client, way: str) -> None:
    bring(page, way, "hills", "image")
    tokens = encode(client, "hills")
    expect(page.locator("#code")).to_have_text(CODES.to_text([tokens])[0])
    assert shown_tokens(page) == tokens
    expect_picture(page, "#image-original", (SAMPLES / "hills.jpg").read_bytes())
    expect_picture(page, "#image-result", decode(client, tokens))
    size = (SAMPLES / "hills.jpg").stat().st_size
    expect(page.locator("#size-file")).to_have_text(f"{size:,} bytes")
    expect(page.locator("#size-code")).to_have_text("48 bytes")
    expect(page.locator("#size-ratio")).to_contain_text(f"{round(size / 48)} times as many bytes")
    expect(page.locator("#image-quality")).to_have_text(re.compile(r"PSNR [\d.]+ dB · SSIM [\d.]+"))


def test_a_format_that_browsers_cannot_show_is_tokenized(page: Page, photographs: list[Any], tmp_path: Path) -> None:
    photographs[0].save(tmp_path / "photograph.tiff")
    before = page.inner_text("#code")
    page.set_input_files("#image-file", tmp_path / "photograph.tiff")
    expect(page.locator("#image-missing")).to_have_text("This browser cannot display the format of the original.")
    expect(page.locator("#code")).not_to_have_text(before)


def test_the_code_and_the_address_are_copied(page: Page, client: httpx.Client) -> None:
    page.click("#code-copy")
    expect(page.locator("#code-copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#code")
    address = copied(page, "address")
    assert address == page.get_attribute("#address", "href")
    assert page.inner_text("#code") in address
    assert client.get(address).raise_for_status().headers["content-type"] == "image/png"
    with page.expect_popup() as popup:
        page.click("#address")
    assert popup.value.url == address
    assert copied(page, "img") == f'<img src="{address}" alt="">'
    assert copied(page, "curl") == f"curl -o image.png {address}"
    assert f'titok.decode("{page.inner_text("#code")}")' in copied(page, "python")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().read_bytes() == client.get(address).content


def copied(page: Page, name: str) -> str:
    """The text that a button copies."""
    page.click(f"#{name}-copy")
    expect(page.locator(f"#{name}-copy")).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_a_link_opens_the_image_again(page: Page, client: httpx.Client) -> None:
    tokens = encode(client, "rocket")
    page.fill("#code-field", CODES.to_text([tokens])[0])
    page.press("#code-field", "Enter")
    expect_picture(page, "#image-result", decode(client, tokens))
    page.fill("#token-number", "77")
    page.press("#token-number", "Tab")  # the end of the change
    changed = [77, *tokens[1:]]
    link = copied(page, "link")
    assert link == page.url
    page.goto("about:blank")
    page.goto(link)
    expect_picture(page, "#image-result", decode(client, changed))
    assert shown_tokens(page) == changed
    expect(page.locator("#image-original")).to_be_hidden()
    expect(page.locator("#same-bytes")).to_be_hidden()


def test_the_border_between_original_and_reconstruction_moves(page: Page) -> None:
    clip = "element => getComputedStyle(element).clipPath"
    for share in (20, 90):
        set_slider(page, "#wipe", share)
        assert page.locator("#image-result").evaluate(clip) == f"inset(0px 0px 0px {share}%)"


def test_other_short_forms_of_the_original_are_shown(page: Page) -> None:
    expect(page.locator("#same-bytes figcaption")).to_contain_text(
        ["ThumbHash", "BlurHash", "4 \u00d7 4 colors", "WebP"]
    )
    expect(page.locator("#same-bytes figcaption .quiet").nth(2)).to_have_text("48 bytes")
    before = page.locator("#same-bytes canvas").evaluate_all("all => all.map((canvas) => canvas.toDataURL())")
    bring(page, "sample", "hills", "image")
    expect(page.locator("#size-file")).to_have_text(f"{(SAMPLES / 'hills.jpg').stat().st_size:,} bytes")
    changed = (
        "before => [...document.querySelectorAll('#same-bytes canvas')].every((c, i) => c.toDataURL() !== before[i])"
    )
    page.wait_for_function(changed, arg=before)


def test_changes_are_undone(page: Page, client: httpx.Client) -> None:
    first = encode(client, "coffee")
    expect(page.locator("#image-quality")).to_contain_text("PSNR")
    for value in ("5", "6"):
        page.fill("#token-number", value)
        page.press("#token-number", "Tab")
    expect(page.locator("#image-quality")).to_have_text("")  # the figures are those of the original's own tokens
    page.click("#tokens-undo")
    assert shown_tokens(page) == [5, *first[1:]]
    page.keyboard.press("Control+z")
    assert shown_tokens(page) == first
    expect_picture(page, "#image-result", decode(client, first))
    expect(page.locator("#image-quality")).to_contain_text("PSNR")
    expect(page.locator("#tokens-undo")).to_be_disabled()


@pytest.mark.parametrize("way", ["pointer", "button"])
def test_a_map_shows_what_a_token_changes(page: Page, way: str) -> None:
    page.locator("#tokens label").nth(6).click()
    if way == "pointer":
        page.locator("#tokens label").nth(5).hover()
    else:
        page.click("#token-effect")
    expect(page.locator("#token-map")).to_be_visible()
    strengths = page.evaluate(
        """() => {
            const canvas = document.getElementById("token-map");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [...data].filter((_, at) => at % 4 === 3);
        }"""
    )
    assert max(strengths) > 100
    if way == "pointer":
        page.mouse.move(1, 1)
    else:
        page.click("#token-effect")
    expect(page.locator("#token-map")).to_be_hidden()


def test_a_code_is_shown_as_its_image(page: Page, client: httpx.Client) -> None:
    tokens = encode(client, "rocket")
    page.fill("#code-field", CODES.to_text([tokens])[0])
    page.press("#code-field", "Enter")
    expect_picture(page, "#image-result", decode(client, tokens))
    assert shown_tokens(page) == tokens
    expect(page.locator("#image-original")).to_be_hidden()


def test_the_picture_follows_a_changed_token_and_goes_back(page: Page, client: httpx.Client) -> None:
    first = encode(client, "coffee")
    page.locator("#tokens label").nth(4).click()
    expect(page.locator("#token-place")).to_have_text("Token 5 of 32")
    expect(page.locator("#token-number")).to_have_value(str(first[4]))
    page.fill("#token-number", "1234")
    changed = [*first[:4], 1234, *first[5:]]
    expect_picture(page, "#image-result", decode(client, changed))
    expect(page.locator("#code")).to_have_text(CODES.to_text([changed])[0])
    expect(page.locator("#tokens .changed")).to_have_text(["1234"])
    expect(page.locator("#token-slider")).to_have_value("1234")
    page.fill("#token-number", "4096")  # one too many: nothing happens
    assert shown_tokens(page) == changed
    page.click("#token-back")
    expect_picture(page, "#image-result", decode(client, first))
    expect(page.locator("#tokens .changed")).to_have_count(0)
    page.click("#token-random")
    page.locator("#tokens label").nth(5).click()
    page.click("#token-random")
    page.click("#tokens-back")
    assert shown_tokens(page) == first
    expect_picture(page, "#image-result", decode(client, first))
    expect_picture(page, "#mix-first", decode(client, first))


def test_a_slider_through_the_codebook_requests_only_its_position(page: Page, client: httpx.Client) -> None:
    first = encode(client, "coffee")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator("#token-slider").evaluate(
        """slider => {
            for (let id = 0; id < 300; id += 1) {
                slider.value = id * 10;
                slider.dispatchEvent(new Event("input", {bubbles: true}));
            }
        }"""
    )
    expect_picture(page, "#image-result", decode(client, [2990, *first[1:]]))
    assert len([url for url in requests if url.endswith("/v1/decode")]) < 10


def test_a_late_response_changes_nothing(page: Page, client: httpx.Client) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "image/jpeg" in route.request.headers["accept"] and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/decode", hold)
    page.fill("#token-number", "1234")
    bring(page, "sample", "hills", "image")
    tokens = encode(client, "hills")
    expect(page.locator("#code")).to_have_text(CODES.to_text([tokens])[0])
    page.evaluate(
        """() => {
            window.changes = 0;
            const watch = new MutationObserver((changes) => (window.changes += changes.length));
            watch.observe(document.getElementById("image-result"), {attributeFilter: ["src"]});
        }"""
    )
    page.fill("#token-number", "99")  # is asked for when the late answer has come
    held[0].continue_()
    page.wait_for_function("() => window.changes")
    expect_picture(page, "#image-result", decode(client, [99, *tokens[1:]]))
    assert page.evaluate("window.changes") == 1


def test_a_late_image_does_not_replace_a_newer_one(page: Page, client: httpx.Client) -> None:
    held: list[Route] = []
    page.route("**/v1/reconstruct", lambda route: route.continue_() if held else held.append(route))
    bring(page, "sample", "rocket", "image")
    bring(page, "sample", "hills", "image")
    code = CODES.to_text([encode(client, "hills")])[0]
    expect(page.locator("#code")).to_have_text(code)
    with page.expect_event("requestfinished", lambda request: request == held[0].request):
        held[0].continue_()
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.inner_text("#code") == code
