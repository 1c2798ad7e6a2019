"""Generated images, their gallery, and a generation that is stopped."""

from __future__ import annotations

import base64
import re

import httpx
from playwright.sync_api import Page, expect

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
    page.select_option("#gen-preset", "fast")
    expect(page.locator("#gen-steps")).to_have_value("4")
    set_slider(page, "#gen-steps", 6)
    set_slider(page, "#gen-guidance", 5.5)
    set_slider(page, "#gen-temperature", 2.25)
    expect(page.locator(".slider output")).to_have_text(["6", "5.5", "2.25"])
    page.click("#gen-start")
    expect(page.locator("#gen-state")).to_have_text("glacier, seed 3")
    wish = {"class": "glacier", "seed": 3, "preset": "fast", "steps": 6, "guidance_scale": 5.5, "temperature": 2.25}
    item = client.post("/v1/generate", json=wish).json()["data"][0]
    file = base64.b64decode(item["image"])
    expect_picture(page, "#gen-picture", file)
    assert [int(text) for text in page.locator("#gen-tokens .cell").all_inner_texts()] == item["tokens"]
    steps = [int(match[1]) for state in page.evaluate("window.states") if (match := re.match(r"Step (\d) of 6", state))]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    expect(page.locator("#gallery li p")).to_have_text(["glacierseed 3"])
    expect_picture(page, "#gallery img", file)


def test_the_gallery_restores_settings_and_images(page: Page, client: httpx.Client) -> None:
    page.fill("#gen-class", "")
    page.fill("#gen-seed", "8")
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
    expect(page.locator("#gallery li")).to_have_count(1)
