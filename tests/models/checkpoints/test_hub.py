"""What a hub answers, and what the error says then: one line with the cause and what to do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.checkpoints.loading import WEIGHT_FILES, open_checkpoint
from models.errors import CheckpointError

# Status and the header X-Error-Code by repository, as the hub sends them.
ANSWERS = {
    "someone/secret": (401, "RepoNotFound"),
    "someone/nothing": (404, "RepoNotFound"),
    "someone/refused": (401, ""),
    "someone/gated": (403, "GatedRepo"),
    "someone/old": (404, "RevisionNotFound"),
    "someone/empty": (404, "EntryNotFound"),
    "someone/broken": (500, ""),
}
SAID = {
    "someone/secret": "there is no public repository someone/secret: check its name, or set HF_TOKEN",
    "someone/nothing": "there is no public repository someone/nothing: check its name, or set HF_TOKEN",
    "someone/refused": "there is no public repository someone/refused: check its name, or set HF_TOKEN",
    "someone/gated": "is gated: accept its conditions at https://huggingface.co/someone/gated, and set HF_TOKEN",
    "someone/old": "has no revision main: its branches, tags and commits are listed at",
    "someone/empty": "has no file model.safetensors at main: its files are listed at https://huggingface.co/someone/empty/tree/main",
    "someone/broken": "download model.safetensors and config.json from https://huggingface.co/someone/broken/tree/main into "
    "a folder, and pass that folder as the weights",
}


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        status, code = ANSWERS[self.path[1:].partition("/resolve/")[0]]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The paths that a local hub was asked for."""
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        yield Hub.asked
        server.shutdown()


@pytest.mark.parametrize("repository", ANSWERS)
def test_every_refusal_of_a_hub_is_one_line_that_says_what_to_do(hub: list[str], repository: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(SAID[repository])) as refused:
        open_checkpoint(repository)
    assert "\n" not in str(refused.value)
    files = WEIGHT_FILES if repository == "someone/empty" else WEIGHT_FILES[:1]
    assert hub == [f"/{repository}/resolve/main/{name}" for name in files]


def test_a_hub_that_cannot_be_reached_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, hub: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    expected = (
        r"not in the local cache, and the hub does not answer \(.*\): download model\.safetensors and config\.json from"
    )
    with pytest.raises(CheckpointError, match=expected) as refused:
        open_checkpoint("someone/titok@v1")
    assert "https://huggingface.co/someone/titok/tree/v1" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert caplog.text == ""
