"""The examples that decode a code elsewhere: in Python without PyTorch, and in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from models import Tokenizer, load_tokenizer
from models.export.onnx_file import export_tokenizer
from tests.e2e.conftest import QUICK_START, end, start_server
from tests.programs import require_program

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "docs" / "examples"
BROWSER_RUNTIME = PROJECT / "node_modules" / "onnxruntime-web" / "dist"
PATIENCE = 60_000  # milliseconds
CODES = (
    "hIj20DLCdTCHjAELb5fkGjU2gnExfmwyPfN9xTKsdaC0RrLCOzj1DOyRfTQFdawb",
    "hAoBSCrGr4U0CrDD_SWIkUgDTy7MF82yln0NRBcX1dFLjJ2LMoeAe2Voc-JP1gaR",
)
PIXELS = """() => {
    const {width, height} = document.getElementById("picture");
    return [...document.getElementById("picture").getContext("2d").getImageData(0, 0, width, height).data];
}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("titok-mini-32", runtime="torch")


@pytest.fixture(scope="module")
def decoder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "decoder.onnx"
    export_tokenizer(tokenizer, "decoder", path, licence="none")
    return path


def expect_pixels(found: np.ndarray, code: str, tokenizer: Tokenizer) -> None:
    """Those of the service in float32, up to two levels."""
    expected = tokenizer.decode(tokenizer.code_format.from_text([code]))[0].numpy()
    difference = np.abs(found.astype(np.int16) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize("code", CODES)
def test_python_decodes_without_pytorch(code: str, decoder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    program = (EXAMPLES / "decode_onnx.py").read_text()
    assert "torch" not in program
    assert "models" not in program
    command = [sys.executable, EXAMPLES / "decode_onnx.py", decoder, code, tmp_path / "picture.png"]
    subprocess.run(command, check=True, timeout=60)
    expect_pixels(np.asarray(Image.open(tmp_path / "picture.png")), code, tokenizer)


@pytest.fixture
def address(decoder: Path, tmp_path: Path) -> Iterator[str]:
    """A service with the browser's example and the files that it needs, which docs/export.md lists, as its own pages."""
    if not BROWSER_RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --no-save onnxruntime-web@1.30.0")
    (tmp_path / "onnxruntime-web").mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(BROWSER_RUNTIME / name, tmp_path / "onnxruntime-web")
    for path in (*(EXAMPLES / name for name in ("decode.html", "decode.js", "decode_page.js")), decoder):
        shutil.copy(path, tmp_path)
    server = start_server(pages_dir=str(tmp_path), **QUICK_START)
    try:
        yield f"{server.url}/"
    finally:
        end(server)


def test_a_browser_decodes_from_its_own_origin(address: str, tokenizer: Tokenizer) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_program("chromium"))
        page, addresses, messages = browser.new_page(), list[str](), list[str]()
        page.on("request", lambda request: addresses.append(request.url))
        page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
        page.goto(f"{address}pages/decode.html")
        for code in CODES:
            page.fill("#code", code)
            page.click("#decode", timeout=PATIENCE)
            expect(page.locator("#status")).to_have_text(re.compile("^Decoded in"), timeout=PATIENCE)
            rgba = np.array(page.evaluate(PIXELS)).reshape(128, 128, 4)
            expect_pixels(rgba[..., :3], code, tokenizer)
            page.evaluate("document.getElementById('status').textContent = ''")
        assert page.evaluate("crossOriginIsolated")  # threads are allowed
        browser.close()
    assert messages == []
    assert all(each.startswith((address, f"blob:{address}")) for each in addresses)
