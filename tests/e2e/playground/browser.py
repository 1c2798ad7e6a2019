"""A page of the playground in a real browser, and what a person does on it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from models.codes.code_format import CodeFormat

PROJECT = Path(__file__).parents[3]
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
