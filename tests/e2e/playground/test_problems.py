"""Problems and services that do not answer, as the playground shows them."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import Page, Route, expect

from tests.e2e.playground.browser import (
    Visit,
    bring,
    ready,
)


def test_a_problem_is_shown_with_its_title_and_detail(visit: Visit, client: httpx.Client) -> None:
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
    expect(page.locator("#image-problem p")).to_contain_text("a code of 5 characters ends inside a token")
    visit.forgive(422)


def test_a_problem_event_and_a_broken_stream_are_shown(page: Page) -> None:
    problem = {"title": "The deadline has passed", "detail": "30 seconds were not enough.", "status": 504}
    broken_off = ": keep-alive\n\n"
    failed = f"event: error\ndata: {json.dumps(problem)}\n\n"
    bodies = iter((failed, broken_off))

    def answer(route: Route) -> None:
        if route.request.headers["accept"] == "text/event-stream":
            route.fulfill(body=next(bodies), content_type="text/event-stream")
        else:  # an image of a class to try
            route.continue_()

    page.route("**/v1/generate", answer)
    for title in (problem["title"], "Connection lost"):
        page.click("#gen-start")
        expect(page.locator("#generate-problem strong")).to_have_text(title)


def test_a_service_that_does_not_answer_is_reported_as_unreachable(visit: Visit) -> None:
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


def test_a_vae_is_said_to_have_no_codes(visit: Visit, client: httpx.Client) -> None:
    page, models = visit.page, client.get("/v1/models").json()
    models["data"][0] |= {"kind": "vae", "codebook_size": 0, "generator": None}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.locator("#page-problem")).to_contain_text("titok-mini-32 is a VAE")
    expect(page.locator("#served")).to_contain_text("12 numbers each")
    expect(page.locator("#sections")).to_be_hidden()
