"""``titok doctor``: checks whether the service would start, and suggests corrections."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Literal

import typer
from pydantic import ValidationError

from service.cli.health import ask
from service.cli.options import Json
from service.cpu_quota import usable_cores
from service.http.sockets import listen
from service.settings import Settings
from service.version import VERSION

Verdict = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """One check: its result, and how to correct it."""

    name: str
    verdict: Verdict
    found: str
    advice: str | None = None


def doctor(as_json: Json = False) -> None:
    """Check settings, device, weights and ports. The exit code is 1 if the service would not start.

    Example:

        TITOK_DEVICES=cuda titok doctor
    """
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
        for problem in error.errors():
            name = "_".join(["TITOK", *map(str, problem["loc"])]).upper()
            yield Check(
                "settings", "wrong", f"{name}: {problem['msg']}", "docs/configuration.md lists the valid values."
            )
        return
    yield Check("settings", "ok", ", ".join(settings.given) or "all defaults")
    yield from _redis(settings)
    yield from _models(settings)
    yield _port("port", settings.host, settings.port, "TITOK_PORT")
    yield _port("admin port", settings.admin_host, settings.admin_port, "TITOK_ADMIN_PORT")


def _redis(settings: Settings) -> Iterator[Check]:
    if settings.redis_url is None:
        return
    from service.cache.redis.checking import failing_commands

    failing = asyncio.run(failing_commands(settings.redis_url.get_secret_value(), settings.cache_namespace))
    if not failing:
        yield Check("redis", "ok", "answers, and allows the commands of the cache and of rate limits")
    for failure in failing:
        yield Check("redis", "warning", failure, "The service starts, but does not share codes or rate limits.")


def _models(settings: Settings) -> Iterator[Check]:
    """The device, the weights, and one image encoded and decoded."""
    import numpy as np
    import torch

    from models.errors import CheckpointError
    from service.engine.protocol import ConfigurationError
    from service.inference.device import open_device
    from service.processes.device_names import device_names

    names = asyncio.run(device_names(settings.devices))
    described = f"{', '.join(names)} (torch {torch.__version__}, {usable_cores()} cores)"
    if "cpu" not in names and not torch.cuda.is_available():
        yield Check(
            "device",
            "wrong",
            f"{described}: no usable CUDA device",
            "Check nvidia-smi, and that torch is a CUDA build; or set TITOK_DEVICES=cpu.",
        )
        return
    yield Check("device", "ok", described)
    try:
        device = open_device(settings.model_copy(update={"devices": names[0]}))
        info = device.info
        grey = np.full((1, info.image_size, info.image_size, 3), 128, np.uint8)
        device.decode(device.encode(grey))
    except (ConfigurationError, RuntimeError) as error:
        if isinstance(error.__cause__, CheckpointError):
            yield Check("weights", "wrong", str(error), "Set TITOK_TOKENIZER_WEIGHTS and TITOK_GENERATOR_WEIGHTS.")
        else:
            yield Check("models", "wrong", str(error), "`titok models` lists the variants.")
        return
    yield Check("weights", "ok", f"{info.name} revision {info.revision} from {info.source}")
    if info.generator is not None:
        yield Check("generator", "ok", f"revision {info.generator.revision}, {len(info.generator.class_names)} classes")
    elif settings.generator == "off":
        yield Check("generator", "ok", "off (TITOK_GENERATOR)")
    else:
        yield Check("generator", "warning", "none: /v1/generate will respond with 404", "Set TITOK_GENERATOR_WEIGHTS.")
    limits = ", ".join(f"{lane} {limit}" for lane, limit in info.batch_limits.items())
    yield Check("an image", "ok", f"encoded and decoded on {names[0]}; batch limits: {limits}")


def _port(name: str, host: str, port: int, setting: str) -> Check:
    try:
        listen(host, port).close()
    except OSError as error:
        if _is_titok(host, port):
            return Check(name, "warning", f"{host}:{port} is used by a running TiTok service")
        return Check(
            name,
            "wrong",
            str(error),
            f"Set {setting} or {setting.replace('PORT', 'HOST')}; port 0 selects a free port.",
        )
    return Check(name, "ok", f"{host}:{port} is free" if port else "a free port")


def _is_titok(host: str, port: int) -> bool:
    try:
        return ask(host, port, "/livez") == (HTTPStatus.OK, {"status": "alive"})
    except (OSError, HTTPException, ValueError):
        return False
