"""Generated images, their gallery, and a generation that is stopped."""

from __future__ import annotations

import base64
import re

import httpx
from playwright.sync_api import Page, Route, expect

from tests.e2e.playground.browser import (
    decode,
    expect_picture,
    set_slider,
)


def test_a_generation_shows_its_steps_and_is_kept_with_its_seed(page: Page, client: httpx.Client) -> None:
    classes = client.get("/v1/models/titok-mini-32/classes").json()["data"]
    offered = page.locator("#gen-classes option").evaluate_all("options => options.map((option) => option.value)")
    assert offered == [entry["name"] for entry in classes]
    page.evaluate(
        """() => {
            window.states = [];
            const watch = {childList: true, characterData: true, subtree: true};
            const state = document.getElementById("gen-state");
            new MutationObserver(() => window.states.push(state.textContent)).observe(state, watch);
        }"""
    )
    page.fill("#gen-class", "Glacier")
    page.fill("#gen-seed", "3")
    page.select_option("#gen-count", "1")
    page.select_option("#gen-preset", "fast")
    expect(page.locator("#gen-steps")).to_have_value("4")
    set_slider(page, "#gen-steps", 6)
    set_slider(page, "#gen-guidance", 5.5)
    set_slider(page, "#gen-temperature", 2.25)
    set_slider(page, "#gen-token-temperature", 0.65)
    expect(page.locator(".slider output")).to_have_text(["6", "5.5", "2.25", "0.65"])
    page.click("#gen-start")
    expect(page.locator("#gen-state")).to_have_text("glacier, seed 3")
    wish = {"class": "glacier", "seed": 3, "preset": "fast", "steps": 6, "guidance_scale": 5.5}
    wish |= {"temperature": 2.25, "token_temperature": 0.65}
    item = client.post("/v1/generate", json=wish).json()["data"][0]
    file = base64.b64decode(item["image"])
    expect_picture(page, "#gen-picture", file)
    assert [int(text) for text in page.locator("#gen-tokens .cell").all_inner_texts()] == item["tokens"]
    steps = [int(match[1]) for state in page.evaluate("window.states") if (match := re.match(r"Step (\d) of 6", state))]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    expect(page.locator("#gallery li p")).to_have_text(["glacierseed 3"])
    expect_picture(page, "#gallery img", file)


def test_the_token_temperature_is_shown_for_presets_that_have_one(page: Page, client: httpx.Client) -> None:
    models = client.get("/v1/models").json()
    models["data"][0]["generator"]["presets"]["fast"]["token_temperature"] = None
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.locator("#gen-token-temperature")).to_be_visible()
    page.select_option("#gen-preset", "fast")
    expect(page.locator("#gen-token-temperature")).to_be_hidden()
    with page.expect_request("**/v1/generate") as sent:
        page.click("#gen-start")
    assert "token_temperature" not in sent.value.post_data_json
    page.select_option("#gen-preset", "demo")
    with page.expect_request("**/v1/generate") as sent:
        page.click("#gen-start")
    assert sent.value.post_data_json["token_temperature"] == 1


def test_the_gallery_restores_settings_and_images(page: Page, client: httpx.Client) -> None:
    page.fill("#gen-class", "")
    page.fill("#gen-seed", "8")
    page.select_option("#gen-count", "1")
    set_slider(page, "#gen-steps", 2)
    page.click("#gen-start")
    expect(page.locator("#gallery li p")).to_have_text(["no classseed 8"])
    first = client.post("/v1/generate", json={"class": None, "seed": 8, "steps": 2}).json()["data"][0]
    page.fill("#gen-class", "10")
    page.click("#gen-another")
    expect(page.locator("#gallery li")).to_have_count(2)
    expect(page.locator("#gallery li").first).to_contain_text(f"catseed {page.input_value('#gen-seed')}")
    page.click("#gen-seed-random")
    set_slider(page, "#gen-steps", 5)
    oldest = page.locator("#gallery li").last
    oldest.get_by_role("button", name="Settings").click()
    assert [page.input_value(f"#gen-{name}") for name in ("class", "seed", "steps")] == ["", "8", "2"]
    oldest.get_by_role("button", name="Use as B").click()
    expect_picture(page, "#mix-second", decode(client, first["tokens"]))
    expect(page.locator("#other-name")).to_have_text("no class, seed 8")
    oldest.get_by_role("button", name="Edit").click()
    expect(page.locator("#code")).to_have_text(first["code"])
    expect_picture(page, "#mix-first", decode(client, first["tokens"]))


def test_a_generation_is_stopped(page: Page) -> None:
    page.route("**/v1/generate", lambda _: None)  # never answered
    page.click("#gen-start")
    expect(page.locator("#gen-state")).to_have_text("Waiting …")
    page.click("#gen-stop")
    expect(page.locator("#gen-state")).to_have_text("Stopped")
    expect(page.locator("#gen-stop")).to_be_disabled()
    expect(page.locator("#generate-problem")).to_be_hidden()
    page.unroute("**/v1/generate")
    page.click("#gen-start")
    expect(page.locator("#gallery li")).to_have_count(4)


def test_four_seeds_are_generated_at_once(page: Page, client: httpx.Client) -> None:
    page.fill("#gen-seed", "3")
    set_slider(page, "#gen-steps", 2)
    page.click("#gen-start")
    expect(page.locator("#gen-state")).to_have_text("mountain, seeds 3 to 6")
    data = client.post("/v1/generate", json={"class": "mountain", "seed": 3, "n": 4, "steps": 2}).json()["data"]
    for place, item in enumerate(data, start=1):
        expect_picture(page, f"#gen-grid .frame:nth-child({place}) img", base64.b64decode(item["image"]))
    expect(page.locator("#gallery li p")).to_have_text([f"mountainseed {seed}" for seed in (3, 4, 5, 6)])


def test_another_seed_waits_for_the_generation_in_progress(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/generate", lambda route: route.continue_() if held else held.append(route))
    page.fill("#gen-seed", "3")
    set_slider(page, "#gen-steps", 2)
    page.click("#gen-start")
    page.click("#gen-another")
    expect(page.locator("#gen-seed")).to_have_value("3")
    held[0].continue_()
    expect(page.locator("#gallery li")).to_have_count(8)
    expect(page.locator("#gen-seed")).not_to_have_value("3")


def test_classes_are_offered_with_an_image_of_each(page: Page, client: httpx.Client) -> None:
    page.locator("#gen-picks").scroll_into_view_if_needed()
    offered = page.locator("#gen-picks button")
    expect(offered).to_have_count(8)
    expect(page.locator("#gen-picks img[src^='blob:']")).to_have_count(8)
    expect(page.locator("#gen-class")).to_have_value("mountain")
    wish = {"class": "sea", "seed": 0, "preset": "fast", "format": "webp"}
    item = client.post("/v1/generate", json=wish).json()["data"][0]
    expect_picture(page, "#gen-picks [title=sea] img", base64.b64decode(item["image"]))
    page.click("#gen-picks [title=sea]")
    expect(page.locator("#gen-state")).to_have_text("sea, seeds 0 to 3")
