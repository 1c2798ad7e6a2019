"""Two images: interpolation between them, and swapped tokens."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.playground.browser import (
    CODES,
    bring,
    decode,
    encode,
    expect_picture,
    set_slider,
)


def test_a_slider_shows_interpolations_of_two_images(page: Page, client: httpx.Client) -> None:
    first, second = encode(client, "coffee"), encode(client, "cat")
    expect_picture(page, "#mix-first", decode(client, first))
    expect_picture(page, "#mix-second", decode(client, second))
    for share, text in ((0, "100 % A, 0 % B"), (30, "70 % A, 30 % B"), (100, "0 % A, 100 % B")):
        set_slider(page, "#mix-share", share)
        body = {"tokens": [first, second], "weights": [100 - share, share]}
        mixed = client.post("/v1/mix", json=body, headers={"Accept": "image/jpeg"})
        expect_picture(page, "#mix-between", mixed.content)
        expect(page.locator("#mix-weights")).to_have_text(text)
        expect(page.locator("#mix-share")).to_have_attribute("aria-valuetext", text)
    page.click("#mix-open")
    expect(page.locator("#code")).to_have_text(CODES.to_text([second])[0])


def test_a_morph_is_played_and_saved_as_a_video(page: Page) -> None:
    page.click("#morph-play")
    expect(page.locator("#morph")).to_be_visible()
    expect(page.locator("#morph-play")).to_have_text("Stop")
    page.click("#morph-play")
    expect(page.locator("#morph")).to_be_hidden()
    with page.expect_download() as download:
        page.click("#morph-save")
    assert download.value.suggested_filename == "morph.webm"
    assert download.value.path().read_bytes().startswith(b"\x1a\x45\xdf\xa3")  # EBML, the container of WebM
    expect(page.locator("#morph-play")).to_have_text("Play morph")


def test_tokens_are_swapped_between_two_images(page: Page, client: httpx.Client) -> None:
    first, second = encode(client, "coffee"), encode(client, "cat")

    def expect_swapped(places: set[int]) -> None:
        new_first = [second[i] if i in places else first[i] for i in range(32)]
        new_second = [first[i] if i in places else second[i] for i in range(32)]
        expect_picture(page, "#mix-first", decode(client, new_first))
        expect_picture(page, "#mix-second", decode(client, new_second))
        expect(page.locator("#swap-count")).to_have_text(f"{len(places)} of 32 swapped")
        expect(page.locator("#swaps [aria-pressed=true]")).to_have_count(len(places))
        assert page.locator("#swaps .cell:first-child").all_inner_texts() == [str(token) for token in new_first]
        assert page.locator("#swaps .cell:last-child").all_inner_texts() == [str(token) for token in new_second]

    page.locator("#swaps button").nth(2).click()
    expect_swapped({2})
    page.locator("#swaps button").nth(9).press("Enter")
    expect_swapped({2, 9})
    page.locator("#swaps button").nth(2).click()
    expect_swapped({9})
    page.click("#swap-half")
    expect_swapped(set(range(16)))
    page.click("#swap-all")
    expect_swapped(set(range(32)))
    page.click("#swap-none")
    expect_swapped(set())


@pytest.mark.parametrize("way", ["pick", "drop", "sample"])
def test_the_second_image_is_chosen_like_the_first(page: Page, client: httpx.Client, way: str) -> None:
    bring(page, way, "rocket", "other")
    expect_picture(page, "#mix-second", decode(client, encode(client, "rocket")))
    expect_picture(page, "#mix-first", decode(client, encode(client, "coffee")))
