"""The ``titok`` command on a running service, and what ``titok doctor`` says of starting one."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from service.api.schemas.base import EXAMPLE_CODE, EXAMPLE_REVISION
from service.client import TiTokClient
from tests.e2e.conftest import Server
from tests.in_process import run_in_process


@pytest.fixture(scope="module")
def folder(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    (path / "below").mkdir()
    for name, photograph in zip(("b.png", "a.jpg", "below/c.webp"), photographs, strict=False):
        photograph.save(path / name)
    (path / "notes.txt").write_text("no image")
    return path


def test_a_folder_and_standard_input_are_encoded_by_the_service(server: Server, folder: Path, jpeg: bytes) -> None:
    ended = run_in_process("encode", folder, "-", "--url", server.url, stdin=jpeg)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    names = [str(folder / name) for name in ("a.jpg", "b.png", "below/c.webp")]
    assert [line["image"] for line in lines] == [*names, "-"]
    with TiTokClient(server.url) as client:
        assert [tuple(line["tokens"]) for line in lines] == [result.tokens for result in client.encode([*names, jpeg])]


def test_broken_images_of_several_are_skipped_and_named(server: Server, folder: Path) -> None:
    ended = run_in_process("encode", __file__, folder / "a.jpg", "/nowhere.jpg", "--url", server.url)
    assert ended.returncode == 3
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["image"] == str(folder / "a.jpg")
    assert f"{__file__}: " in ended.stderr.decode()
    assert b"cannot read /nowhere.jpg" in ended.stderr


def test_remote_and_local_answers_are_the_same(exact_server: Server, folder: Path, tmp_path: Path) -> None:
    here = run_in_process("encode", folder, TITOK_DTYPE="float32")
    there = run_in_process("encode", folder, TITOK_URL=exact_server.url)
    assert here.stdout == there.stdout
    here_or_there = {
        "here": partial(run_in_process, TITOK_DTYPE="float32"),
        "there": partial(run_in_process, TITOK_URL=exact_server.url),
    }
    for place, run in here_or_there.items():
        code = json.loads(here.stdout.splitlines()[0])["code"]
        assert run("decode", code, tmp_path / f"{place}.png").returncode == 0
        made = run("generate", "cat", tmp_path / f"{place}.webp", "--seed", "3", "--preset", "fast")
        assert made.stdout.startswith(b"seed 3, code ")
        kept = run("reconstruct", folder / "b.png", tmp_path / f"{place}.jpg")
        assert kept.returncode == 0, kept.stderr
        (tmp_path / f"{place}.txt").write_bytes(made.stdout + kept.stdout)
        for suffix, image_format in (("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")):
            with Image.open(tmp_path / f"{place}.{suffix}") as picture:
                assert picture.format == image_format
    assert (tmp_path / "here.txt").read_text() == (tmp_path / "there.txt").read_text()
    assert b"PSNR" in (tmp_path / "here.txt").read_bytes()


def test_the_client_of_a_service_is_closed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[TiTokClient] = []
    close = TiTokClient.close
    monkeypatch.setattr(TiTokClient, "close", lambda client: (closed.append(client), close(client)))
    ended = run_in_process("decode", EXAMPLE_CODE, tmp_path / "picture.png", "--url", server.url)
    assert ended.returncode == 0, ended.stderr
    assert len(closed) == 1


def test_an_image_of_a_service_can_be_piped(server: Server, jpeg: bytes) -> None:
    ended = run_in_process("reconstruct", "-", "-", "--url", server.url, stdin=jpeg)
    assert Image.open(io.BytesIO(ended.stdout)).format == "PNG"


def test_commands_with_url_do_not_import_torch(server: Server, tmp_path: Path) -> None:
    probe = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["titok", "decode", "{"A" * 64}", "{tmp_path / "x.png"}", "--url", "{server.url}"]
from service.cli.main import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decode", "AAAAA", "x.png", "--url", "URL"], "ends inside a token"),
        (["generate", "catt", "x.png", "--url", "URL"], "Did you mean"),
        (["encode", "/nowhere.jpg", "--url", "URL"], "cannot read /nowhere.jpg"),
        (["encode", __file__, "--url", "URL"], f"{__file__}: "),
        (["encode", "FOLDER/notes.txt"], "FOLDER/notes.txt: "),
        (["decode", "A" * 64, "x.png", "--url", "127.0.0.1"], "begins with http://"),
    ],
    ids=["a cut code", "a class", "no file", "no image", "a local file", "an address"],
)
def test_errors_are_one_line_that_names_the_cause(
    server: Server, folder: Path, arguments: list[str], message: str
) -> None:
    known = {"URL": server.url, "FOLDER": str(folder)}
    for name, value in known.items():
        arguments = [argument.replace(name, value) for argument in arguments]
        message = message.replace(name, value)
    ended = run_in_process(*arguments)
    shown = " ".join(ended.stderr.decode().split())
    assert ended.returncode == 1
    assert message in shown
    assert "Traceback" not in shown


def test_a_refused_connection_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    ended = run_in_process("decode", "A" * 64, "x.png", "--url", f"http://127.0.0.1:{port}")
    assert ended.returncode == 1
    assert f"titok: http://127.0.0.1:{port}: " in " ".join(ended.stderr.decode().split())


def checks(ended: subprocess.CompletedProcess[bytes]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in map(json.loads, ended.stdout.splitlines())}


def test_the_doctor_finds_no_error_where_a_service_would_start() -> None:
    redis_url = "unix://:s3cret@/nowhere.sock"  # the service would start without it
    ended = run_in_process(
        "doctor", TITOK_PORT="0", TITOK_ADMIN_PORT="0", TITOK_API_KEYS="s3cret", TITOK_REDIS_URL=redis_url
    )
    assert ended.returncode == 0, ended.stdout
    text = ended.stdout.decode()
    assert f"titok-mini-32 revision {EXAMPLE_REVISION.partition('-')[0]}" in text
    assert "encoded and decoded on cpu" in text
    assert "PING: Error 2 connecting to /nowhere.sock" in text
    assert "s3cret" not in text


def test_the_doctor_distinguishes_a_running_service_from_another_program_on_a_port(server: Server) -> None:
    port, admin_port = (url.rpartition(":")[2] for url in (server.url, server.admin_url))
    mine = checks(run_in_process("doctor", "--json", TITOK_PORT=port, TITOK_ADMIN_PORT=admin_port))
    assert [mine[name]["verdict"] for name in ("port", "admin port")] == ["warning", "warning"]
    assert "is used by a running TiTok service" in mine["port"]["found"]
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        ended = run_in_process("doctor", "--json", TITOK_PORT=str(stranger.getsockname()[1]), TITOK_ADMIN_PORT="0")
    assert ended.returncode == 1
    assert checks(ended)["port"]["verdict"] == "wrong"
    assert "TITOK_PORT" in checks(ended)["port"]["advice"]


def test_health_asks_the_running_service(server: Server) -> None:
    asked = run_in_process("health", TITOK_ADMIN_PORT=server.admin_url.rpartition(":")[2])
    assert (asked.returncode, asked.stdout) == (0, b"ready\n")


@pytest.mark.parametrize(
    ("settings", "name", "found"),
    [
        ({"TITOK_PORT": "none"}, "settings", "TITOK_PORT"),
        ({"TITOK_REDIS_URL": "redis://h:notaport"}, "settings", "TITOK_REDIS_URL"),
        ({"TITOK_DEVICES": "cuda:7"}, "device", "no usable CUDA device"),
        ({"TITOK_TOKENIZER_WEIGHTS": "/nowhere.safetensors"}, "weights", "/nowhere.safetensors"),
        ({"TITOK_TOKENIZER": "titok-x"}, "models", "no tokenizer is called 'titok-x'"),
    ],
    ids=["a setting", "a URL", "a device", "weights", "a variant"],
)
def test_the_doctor_reports_errors_with_advice(settings: dict[str, str], name: str, found: str) -> None:
    ended = run_in_process("doctor", "--json", **settings)
    assert ended.returncode == 1
    check = checks(ended)[name]
    assert check["verdict"] == "wrong"
    assert found in check["found"]
    assert check["advice"]


def test_the_doctor_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    shipped = BUNDLED_WEIGHTS / DEFAULT_VARIANT
    tensors = load_file(shipped / "model.safetensors")
    tensors["latent_tokens"][0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(shipped / "config.json", tmp_path)
    ended = run_in_process("doctor", "--json", TITOK_TOKENIZER_WEIGHTS=str(tmp_path))
    assert ended.returncode == 1
    assert checks(ended)["weights"]["found"].endswith("latent_tokens has values that are not finite")
