"""``titok pull``: weights from a hub, checked, so that the service starts without one."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from models import load_tokenizer
from models.checkpoints.bundled import BUNDLED_WEIGHTS
from models.checkpoints.loading import open_checkpoint
from models.errors import CheckpointError
from service.cli.main import app

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MINI = BUNDLED_WEIGHTS / "titok-mini-32"


class Hub(BaseHTTPRequestHandler):
    """The files of the shipped tokenizer as ``someone/titok``, by the protocol of the Hugging Face hub."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        repository, _, name = self.path[1:].replace("/resolve/main/", "|").partition("|")
        file = MINI / name
        is_known = repository == "someone/titok" and file.is_file()
        content = file.read_bytes() if is_known else b""
        if repository == "someone/older" and name == "pytorch_model.bin":
            torch.save(load_file(MINI / "model.safetensors"), written := io.BytesIO())
            is_known, content = True, written.getvalue()
        self.send_response(200 if is_known else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        if not is_known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder into which downloads from a local hub go."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        yield tmp_path
        server.shutdown()


def pull(**settings: str) -> Result:
    return CliRunner().invoke(app, ["pull"], env={f"TITOK_{name.upper()}": value for name, value in settings.items()})


def test_the_shipped_models_are_there_already() -> None:
    pulled = pull()
    assert pulled.exit_code == 0, pulled.exception
    assert [line.split()[:2] for line in pulled.output.splitlines()] == [
        ["tokenizer", "titok-mini-32:"],
        ["generator", "titok-mini-32:"],
    ]


def test_pulled_weights_load_without_a_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = pull(tokenizer="theirs", tokenizer_weights="someone/titok", generator="off", dtype="tf32")
    assert pulled.exit_code == 0, pulled.exception
    revision = load_tokenizer("titok-mini-32").revision
    assert pulled.output == f"tokenizer theirs: someone/titok@{COMMIT}, weights {revision.partition('-')[0]}\n"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_tokenizer("theirs", weights="someone/titok").revision == revision


def test_a_repository_with_the_older_format_alone_is_read_with_and_without_a_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_checkpoint(MINI).digest()
    assert open_checkpoint("someone/older").digest() == expected
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_checkpoint("someone/older").digest() == expected


def test_weights_that_are_not_there_are_an_error(hub: Path) -> None:
    missing = pull(tokenizer_weights="someone/titok:other.safetensors", generator="off")
    assert isinstance(missing.exception, CheckpointError)
    assert "someone/titok@main:other.safetensors" in str(missing.exception)
