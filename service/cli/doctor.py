"""``titok doctor``: whether a service would start here with these settings, and what to do if not."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from service.cpu_quota import usable_cores
from service.http.sockets import listen, url_of
from service.settings import Settings
from service.version import VERSION

__all__ = ["Check", "doctor"]

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    advice: str | None = None


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False) -> None:
    """Check settings, device, weights and ports as `titok serve` would find them. Exit code 1 if anything is wrong."""
    wrong = False
    for check in _checks():
        wrong |= check.verdict == "wrong"
        typer.echo(json.dumps(dataclasses.asdict(check)) if as_json else _line(check))
    raise typer.Exit(1 if wrong else 0)


def _line(check: Check) -> str:
    advice = f"\n{'':<24} -> {check.advice}" if check.advice else ""
    return f"{check.verdict:<8} {check.name:<15} {check.found}{advice}"


def _checks() -> Iterator[Check]:
    yield Check("version", "ok", f"titok-service {VERSION}")
    try:
        settings = Settings()
    except ValidationError as error:
        for place in error.errors():
            name = "_".join(["TITOK", *map(str, place["loc"])]).upper()
            yield Check("settings", "wrong", f"{name}: {place['msg']}", "docs/configuration.md lists what is taken.")
        return
    yield Check("settings", "ok", ", ".join(settings.given) or "all as they are by default")
    yield from _models(settings)
    yield _port("port", settings.host, settings.port, "TITOK_PORT")
    yield _port("admin port", settings.host, settings.admin_port, "TITOK_ADMIN_PORT")


def _models(settings: Settings) -> Iterator[Check]:
    """The device, and a real image there and back on it."""
    import numpy as np
    import torch

    from models.errors import CheckpointError
    from service.inference.device import open_device
    from service.processes.device_names import device_names

    names = asyncio.run(device_names(settings.devices))
    described = f"{', '.join(names)} (torch {torch.__version__}, {usable_cores()} cores)"
    if "cpu" not in names and not torch.cuda.is_available():
        yield Check(
            "device",
            "wrong",
            f"{described}: no CUDA device can be used",
            "See what nvidia-smi says and whether torch is a CUDA build; TITOK_DEVICES=cpu does without.",
        )
        return
    yield Check("device", "ok", described)
    try:
        device = open_device(settings.model_copy(update={"devices": names[0]}))
        info = device.info
        grey = np.full((1, info.image_size, info.image_size, 3), 128, np.uint8)
        device.decode(device.encode(grey))
    except CheckpointError as error:
        yield Check("weights", "wrong", str(error), "TITOK_TOKENIZER_WEIGHTS and TITOK_GENERATOR_WEIGHTS name others.")
        return
    except (ValueError, LookupError, RuntimeError) as error:
        yield Check("models", "wrong", str(error), "`titok info` lists what can be served.")
        return
    yield Check("weights", "ok", f"{info.name} revision {info.revision} from {info.source}")
    if info.generator is not None:
        yield Check("generator", "ok", f"revision {info.generator.revision}, {len(info.generator.class_names)} classes")
    elif settings.generator == "off":
        yield Check("generator", "ok", "off, as asked for")
    else:
        yield Check("generator", "warning", "none: /v1/generate will answer 404", "TITOK_GENERATOR_WEIGHTS names one.")
    limits = ", ".join(f"{lane} {limit}" for lane, limit in info.batch_limits.items())
    yield Check("an image", "ok", f"there and back on {names[0]}; at most in one batch: {limits}")


def _port(name: str, host: str, port: int, setting: str) -> Check:
    try:
        listen(host, port).close()
    except OSError as error:
        if _is_ours(host, port):
            return Check(name, "warning", f"{host}:{port} is taken by a TiTok service that runs already")
        return Check(
            name, "wrong", str(error), f"{setting} and TITOK_HOST name another address; port 0 lets the system choose."
        )
    return Check(name, "ok", f"{host}:{port} is free" if port else "the system chooses one")


def _is_ours(host: str, port: int) -> bool:
    import httpx

    try:
        answer = httpx.get(f"{url_of(host, port)}/livez", timeout=2.0)
        return answer.status_code == HTTPStatus.OK and answer.json() == {"status": "alive"}
    except (httpx.HTTPError, ValueError):
        return False
