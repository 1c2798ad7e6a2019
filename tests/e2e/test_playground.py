"""The playground in a real browser: every part of it is used as a person would, and the console stays empty."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from models.codes.code_format import CodeFormat
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.training.checkpoints import checkpoint_config, save_checkpoint
from tests.e2e.conftest import Server
from tests.programs import require_program

PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "service" / "api" / "playground" / "samples"
CODES = CodeFormat(32, 4096)
PATIENCE = 60_000  # milliseconds; machines are slow at times, and nothing here is timed
SMALL = 0.25  # levels of 256, on average; one other token makes 0.7 and more
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 1150}}

# The mean difference of a shown picture and a file, both decoded by the browser, once it is small or time is up.
DIFFERENCE = """async ([selector, file, small, milliseconds]) => {
    const pixels = async (image) => {
        await image.decode();
        const {naturalWidth: width, naturalHeight: height} = image;
        const canvas = Object.assign(document.createElement("canvas"), {width, height});
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, width, height).data;
    };
    const expected = new Image();
    expected.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(file), (c) => c.charCodeAt(0))]));
    const wanted = await pixels(expected);
    const until = performance.now() + milliseconds;
    let difference = 255;
    while (difference >= small && performance.now() < until) {
        await new Promise(requestAnimationFrame);
        const shown = await pixels(document.querySelector(selector)).catch(() => []);
        if (shown.length === wanted.length) {
            difference = shown.reduce((sum, value, place) => sum + Math.abs(value - wanted[place]), 0) / shown.length;
        }
    }
    return difference;
}"""
# What a drop and a paste bring: a file that the browser makes.
TRANSFER = """([name, file]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(file), (c) => c.charCodeAt(0))], name, {type: "image/jpeg"}));
    return transfer;
}"""


@dataclass
class Visit:
    """A page that was opened, and what its console said."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def forgive(self, status: int) -> None:
        """The browser itself writes of every answer that is a problem; one was provoked."""
        [complaint] = self.complaints
        assert f"status of {status}" in complaint
        self.complaints.clear()


@pytest.fixture(scope="module")
def server(exact_server: Server) -> Server:
    return exact_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = require_program("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
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


def ready(page: Page) -> None:
    for picture in ("#image-original", "#image-result", "#mix-first", "#mix-between", "#mix-second"):
        expect(page.locator(picture)).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#gen-class")).not_to_have_value("")


def encode(client: httpx.Client, name: str) -> list[int]:
    answer = client.post("/v1/encode", files={"image": (SAMPLES / f"{name}.jpg").read_bytes()})
    tokens: list[int] = answer.json()["data"][0]["tokens"]
    return tokens


def decode(client: httpx.Client, tokens: list[int]) -> bytes:
    return (
        client.post("/v1/decode", json={"tokens": tokens}, headers={"Accept": "image/jpeg"}).raise_for_status().content
    )


def expect_picture(page: Page, selector: str, file: bytes) -> None:
    """The element comes to show the picture; images of one batch may differ in their last bits."""
    given = [selector, base64.b64encode(file).decode(), SMALL, PATIENCE]
    assert page.evaluate(DIFFERENCE, given) < SMALL  # wait_for_function would take a promise for true


def shown_tokens(page: Page) -> list[int]:
    return [int(text) for text in page.locator("#tokens .cell").all_inner_texts()]


def set_slider(page: Page, selector: str, value: float) -> None:
    """As a pointer that is let go of there."""
    page.locator(selector).evaluate(
        """(slider, value) => {
            slider.value = value;
            for (const name of ["input", "change"]) slider.dispatchEvent(new Event(name, {bubbles: true}));
        }""",
        value,
    )


def bring(page: Page, way: str, name: str, where: str) -> None:
    """Gives the page a sample: by the file dialog, a drop, the clipboard, or a click on it."""
    path = SAMPLES / f"{name}.jpg"
    if way == "pick":
        page.set_input_files(f"#{where}-file", path)
    elif way == "sample":
        page.click(f'#{where}-samples img[src$="/{name}.jpg"]')
    else:
        transfer = page.evaluate_handle(TRANSFER, [path.name, base64.b64encode(path.read_bytes()).decode()])
        if way == "drop":
            page.dispatch_event(f"#{where}-drop", "dragover", {"dataTransfer": transfer})
            page.dispatch_event(f"#{where}-drop", "drop", {"dataTransfer": transfer})
        elif way == "drop beside":
            page.dispatch_event("footer", "drop", {"dataTransfer": transfer})
        else:
            page.evaluate(
                "data => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
                transfer,
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
    expect(page.locator("#size-ratio")).to_have_text(f"{round(size / 48)} times smaller")
    expect(page.locator("#image-quality")).to_have_text(re.compile(r"PSNR [\d.]+ dB · SSIM [\d.]+"))


def test_a_format_that_browsers_do_not_show_is_tokenized_all_the_same(
    page: Page, photographs: list[Any], tmp_path: Path
) -> None:
    photographs[0].save(tmp_path / "photograph.tiff")
    before = page.inner_text("#code")
    page.set_input_files("#image-file", tmp_path / "photograph.tiff")
    expect(page.locator("#image-missing")).to_have_text("This browser cannot display the format of the original.")
    expect(page.locator("#code")).not_to_have_text(before)


def test_the_code_and_the_address_are_copied(page: Page, client: httpx.Client) -> None:
    page.click("#code-copy")
    expect(page.locator("#code-copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#code")
    page.click("#address-copy")
    expect(page.locator("#address-copy")).to_have_text("Copied")
    address = page.evaluate("navigator.clipboard.readText()")
    assert address == page.get_attribute("#address", "href")
    assert page.inner_text("#code") in address
    assert client.get(address).raise_for_status().headers["content-type"] == "image/png"
    with page.expect_popup() as popup:
        page.click("#address")
    assert popup.value.url == address


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


def test_a_slider_through_the_codebook_asks_only_for_where_it_is(page: Page, client: httpx.Client) -> None:
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


def test_an_answer_that_comes_too_late_changes_nothing(page: Page, client: httpx.Client) -> None:
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


def test_an_image_that_loads_too_late_does_not_replace_the_one_asked_for_after_it(
    page: Page, client: httpx.Client
) -> None:
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


def test_a_slider_shows_what_lies_between_two_images(page: Page, client: httpx.Client) -> None:
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


def test_an_image_is_generated_before_ones_eyes_and_kept_with_its_seed(page: Page, client: httpx.Client) -> None:
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


def test_the_gallery_gives_back_settings_and_images(page: Page, client: httpx.Client) -> None:
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


def test_a_problem_is_shown_as_its_document_says(visit: Visit, client: httpx.Client) -> None:
    page = visit.page
    page.fill("#gen-class", "glaciar")
    page.click("#gen-start")
    problem = client.post("/v1/generate", json={"class": "glaciar"}).json()
    assert "glacier" in problem["detail"]
    expect(page.locator("#generate-problem strong")).to_have_text(problem["title"])
    expect(page.locator("#generate-problem p")).to_have_text(problem["detail"])
    visit.forgive(404)
    page.fill("#gen-class", "glacier")
    page.click("#gen-start")
    expect(page.locator("#generate-problem")).to_be_hidden()

    broken = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
    problem = client.post("/v1/reconstruct", files={"image": ("broken.jpg", b"no image", "image/jpeg")}).json()
    for name in ("image", "other"):
        page.set_input_files(f"#{name}-file", broken)
        expect(page.locator(f"#{name}-problem strong")).to_have_text(problem["title"])
        expect(page.locator(f"#{name}-problem p")).to_have_text(problem["detail"])
        visit.forgive(400)

    page.fill("#code-field", "short")
    page.press("#code-field", "Enter")
    expect(page.locator("#image-problem p")).to_contain_text("a code has 64 characters, not 5")
    visit.forgive(422)


def test_a_problem_amid_the_events_and_a_stream_that_breaks_off_are_shown(page: Page) -> None:
    problem = {"title": "The deadline has passed", "detail": "30 seconds were not enough.", "status": 504}
    broken_off = ": keep-alive\n\n"
    failed = f"event: error\ndata: {json.dumps(problem)}\n\n"
    bodies = iter((failed, broken_off))
    page.route("**/v1/generate", lambda route: route.fulfill(body=next(bodies), content_type="text/event-stream"))
    for title in (problem["title"], "Connection lost"):
        page.click("#gen-start")
        expect(page.locator("#generate-problem strong")).to_have_text(title)


def test_a_service_that_does_not_answer_is_said_to_be_gone(visit: Visit) -> None:
    visit.page.route("**/v1/reconstruct", lambda route: route.abort())
    bring(visit.page, "sample", "hills", "image")
    expect(visit.page.locator("#image-problem strong")).to_have_text("No response")
    assert all("net::ERR_FAILED" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_a_service_that_is_not_ready_can_be_asked_again(visit: Visit) -> None:
    page = visit.page
    problem = json.dumps({"title": "Not available", "detail": "The service is starting.", "status": 503})
    page.route(
        "**/v1/models",
        lambda route: route.fulfill(status=503, body=problem, content_type="application/problem+json"),
    )
    page.reload()
    expect(page.locator("#page-problem")).to_contain_text("The service is starting.")
    visit.forgive(503)
    page.unroute("**/v1/models")
    page.click("#retry")
    ready(page)
    expect(page.locator("#retry")).to_be_hidden()


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


def test_everything_is_reached_by_the_keyboard(page: Page) -> None:
    set_slider(page, "#gen-steps", 2)
    page.click("#gen-start")
    expect(page.locator("#gallery li")).to_have_count(1)
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
def test_nothing_is_inaccessible_in_the_light_in_the_dark_or_on_a_phone(
    visits: Callable[..., Visit], server: Server, name: str, options: dict[str, Any]
) -> None:
    opened = visits(server.url, **options)
    page = opened.page
    ready(page)
    if os.environ.get("WRITE_SCREENSHOTS"):
        page.screenshot(path=PROJECT / "docs" / "images" / f"playground-{name}.png")
    page.fill("#gen-class", "sea")
    page.click("#gen-start")
    expect(page.locator("#gallery li")).to_have_count(1)
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


def test_another_tokenizer_a_key_and_no_generator(
    visits: Callable[..., Visit], serve: Callable[..., Server], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = TransformerSize(width=32, layers=1, heads=2)
    config = TiTokConfig(
        num_latent_tokens=128,
        codebook_size=5000,
        token_size=5,
        encoder=size,
        decoder=size,
        image_size=64,
        is_legacy=False,
        finetune_decoder=False,
    )
    save_checkpoint(tmp_path, checkpoint_config(config), TiTok(config).state_dict())
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
    expect(page.locator("#generator")).to_be_hidden()
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "sesame"}, timeout=60) as client:
        tokens = encode(client, "coffee")
        assert page.inner_text("#code") == CodeFormat(128, 5000).to_text([tokens])[0]
        page.fill("#token-number", "4999")
        expect_picture(page, "#image-result", decode(client, [4999, *tokens[1:]]))
    page.context.close()
    assert opened.complaints == []


def test_the_reference_draws_itself_under_its_policy(page: Page) -> None:
    page.goto("/docs")
    expect(page.locator("#operations-tokens-encode_v1_encode_post")).to_be_visible()
