"""Every knob: an environment variable ``TITOK_*``, or a flag of ``titok serve`` of the same name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.checkpoints.bundled import DEFAULT_VARIANT
from service.api.access.keys import check_rate
from service.inference.cpu_quota import usable_cores

__all__ = ["LogFormat", "Settings", "invalid_settings"]

MiB = 1024 * 1024
LogFormat = Literal["auto", "json", "text"]
_DEVICE = re.compile(r"cpu|cuda:\d{1,3}")
_ORIGIN = re.compile(r"https?://[\w.\-\[\]:]+", re.ASCII)
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster")


class Settings(BaseSettings):
    """What the service serves, where it listens, and how much it takes."""

    model_config = SettingsConfigDict(env_prefix="TITOK_", extra="ignore", frozen=True)

    tokenizer: str = Field(DEFAULT_VARIANT, description="Variant name of the tokenizer.")
    tokenizer_weights: str | None = Field(
        None, description="Its weights: a file, a folder with config.json, or a hub id; by default the variant's own."
    )
    generator: str | None = Field(
        "auto",
        description="Variant name of the generator; 'auto' is the tokenizer's own if it has one; 'off' for none.",
    )
    generator_weights: str | None = Field(None, description="Its weights, as for the tokenizer.")
    devices: str = Field(
        "auto",
        description="Where the models run: 'cpu', 'cuda' (every GPU), 'cuda:1', 'cuda:0,cuda:1', or 'auto' (every "
        "GPU where there is one, else the CPU).",
    )
    dtype: Literal["auto", "float32", "tf32", "tf32x3", "float16", "bfloat16"] = Field(
        "auto",
        description="Number format. 'auto' lowers the image decoder alone, where that is faster; token ids stay those "
        "of float32. The others below float32 lower everything: other ids, under a revision of their own. 'tf32' and "
        "'tf32x3' (three passes, near float32) need a CUDA device.",
    )
    cuda_graphs: bool = Field(
        True, description="Replay batches on a CUDA device as graphs, recorded at start-up for powers of two."
    )
    workers: Literal["auto", "process", "inline"] = Field(
        "auto",
        description="Where batches run: 'process' (also 'auto'), a process for each device behind processes that answer "
        "HTTP; 'inline', a thread of the one process that does everything.",
    )
    threads: int = Field(0, ge=0, le=256, description="Threads of a CPU device; 0: as many as there are cores for it.")
    front_ends: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that answer HTTP; 0: one on a CPU, two for each GPU. Each has its own cache.",
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every network.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 lets the system choose one.")
    admin_port: int = Field(
        8001, ge=0, le=65535, description="Port of /metrics and the health routes, never to be made public."
    )
    admin_host: str | None = Field(None, description="Address of the admin port; by default that of the API.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated keys, one of which a caller must send: plain ones, which have every role, or hashed "
        "ones, `NAME:ROLE+ROLE:sha256:HEX[:RATE]` (`titok keys new`). Neither these nor a file: no key is needed.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="A TOML file of hashed keys, besides those above; read again within a second when it has changed "
        "([how](security.md)).",
    )
    rate_limit: Annotated[str, AfterValidator(check_rate)] | None = Field(
        None,
        description="Images that a key may ask for, `100/second` or `5000 per 10 minutes`, where it has no rate of its "
        "own; shared by all processes through Redis if there is one, else counted by each front end.",
    )
    anonymous_rate_limit: Annotated[str, AfterValidator(check_rate)] | None = Field(
        None,
        description="The same for each client address, where no keys are set. Behind a proxy all addresses are the proxy's.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated origins (`https://app.example.com`) whose pages may call the API, or `*`; none: no "
        "page of another origin may.",
    )

    playground: bool = Field(True, description="Whether the page to try the service on is there, at `/`.")

    cache: Literal["auto", "memory", "redis", "off"] = Field(
        "auto",
        description="Where codes of images already seen are kept: 'memory' of each process, 'redis', or 'off'; 'auto' is "
        "Redis where there is a URL of one, else memory.",
    )
    cache_scope: Literal["shared", "key"] = Field(
        "shared",
        description="Who shares what the cache knows: all callers, or each API key alone, because a hit tells that "
        "somebody has sent the same image.",
    )
    lookup: bool = Field(
        True, description="Answer which codes are known by the SHA-256 of an image (/v1/codes), without its bytes."
    )
    cache_entries: int = Field(
        100_000,
        ge=1,
        description="Codes the in-memory cache holds, about 500 bytes each; an image new to it takes two.",
    )
    cache_ttl: int = Field(
        30 * 24 * 3600, ge=0, description="Seconds that a code stays in Redis after it was written; 0: for ever."
    )
    cache_namespace: str = Field(
        "titok", pattern=r"^[\w.-]{1,64}$", description="First part of every key in Redis, for several services in one."
    )
    cache_value_bytes: int = Field(4096, ge=64, description="Longest value in Redis; longer ones are not used.")
    cache_front_entries: int = Field(
        10_000, ge=0, description="Codes that each process keeps in memory in front of Redis; 0: none."
    )
    cache_lease: float = Field(
        2.0, ge=0, le=60, description="Seconds that others wait for an image one front end is computing; 0: not at all."
    )
    picture_cache_bytes: int = Field(
        32 * MiB,
        ge=0,
        description="Bytes of rendered images (/v1/images/...) that each process keeps in memory; 0: none.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="`redis://user:password@host:6379/0`; `rediss://` with TLS, `unix://`, "
        "`redis+sentinel://host:26379,host:26379/service`, `redis+cluster://`.",
    )
    redis_timeout: float = Field(
        0.01, gt=0, le=1, description="Seconds that Redis may take to connect or answer; later it counts as not there."
    )

    max_connections: int = Field(
        1000,
        ge=2,
        le=100_000,
        description="Connections open at a time in each front end; an idle one gives way to a new one, else 503.",
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1024, le=MiB, description="Bytes of a request's line and headers together (431)."
    )
    header_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds that the headers of a request may take, from its first byte (408)."
    )
    max_body_bytes: int = Field(32 * MiB, ge=1024, description="Longest request body.")
    body_bytes_in_flight: int = Field(
        256 * MiB, ge=1024, description="Bytes of all request bodies together that each front end holds; else 429."
    )
    decoded_bytes_in_flight: int = Field(
        1024 * MiB,
        ge=MiB,
        description="Bytes of memory that decoding images may take in each front end at a time; images wait for their turn, "
        "and one that needs more is decoded alone.",
    )
    max_pixels: int = Field(40_000_000, ge=1, description="Pixels of one image, by its header, before it is decoded.")
    max_images: int = Field(64, ge=1, le=4096, description="Images of one request, encoded or decoded.")
    max_generate: int = Field(16, ge=1, le=1024, description="Images of one generate request.")
    max_batch_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="Most images of one device batch; 0: as many as are worth having, found at start-up.",
    )
    batch_seconds: float = Field(
        0.5, gt=0, le=60, description="Seconds that one device batch may take; larger ones are not formed."
    )
    max_wait_ms: float = Field(
        0.0, ge=0, le=10_000, description="Milliseconds that an image may wait for company while a device is free."
    )
    queue_images: int = Field(512, ge=1, description="Images that may wait in each lane of a front end; else 429.")
    queue_bytes: int = Field(
        256 * MiB, ge=MiB, description="Bytes that may wait in each lane of a front end; else 429."
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="Threads that decode images, in each front end; 0: the cores, shared out."
    )
    request_timeout: float = Field(30.0, gt=0, le=3600, description="Seconds until a request's deadline (504).")
    body_timeout: float = Field(20.0, gt=0, le=3600, description="Seconds that a request body may take (408).")
    shutdown_delay: float = Field(
        0.5,
        ge=0,
        le=300,
        description="Seconds after SIGTERM in which requests are still taken, while readiness is down.",
    )
    drain_seconds: float = Field(20.0, ge=0, le=3600, description="Seconds that accepted work may take after that.")
    heartbeat_seconds: float = Field(
        10.0, ge=0.2, le=3600, description="Seconds of silence after which a process is replaced."
    )
    batch_timeout: float = Field(
        120.0, gt=0, le=3600, description="Seconds of one batch after which a worker is replaced."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least important log line.")
    log_format: LogFormat = Field(
        "auto",
        description="Log lines: 'json', 'text', or 'auto', text where standard error is a terminal and else JSON.",
    )
    access_log: bool = Field(True, description="A log line for each request; docs/operations.md says what it holds.")

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(item for part in value.split(",") if (item := part.strip())) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:80]!r} is no origin; write https://app.example.com, without a path, or *")
        return value

    @field_validator("devices")
    @classmethod
    def _name_devices(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if names not in (["auto"], ["cuda"]) and not all(_DEVICE.fullmatch(name) for name in names):
            raise ValueError(f"{value[:80]!r} is neither 'auto', 'cpu', 'cuda', 'cuda:N' nor a comma list of 'cuda:N'")
        if len(set(names)) < len(names):
            raise ValueError(f"{value[:80]!r} names a device twice")
        return ",".join(names)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value().partition("://")[0] not in REDIS_SCHEMES:
            raise ValueError(f"a Redis URL begins with one of {', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.workers == "inline" and "," in self.devices:
            raise ValueError(f"workers 'inline' runs one device, not {self.devices}")
        if self.cache == "redis" and self.redis_url is None:
            raise ValueError("cache 'redis' needs TITOK_REDIS_URL")
        if self.cache_scope == "key" and not self.api_keys and self.api_keys_file is None:
            raise ValueError("cache_scope 'key' needs TITOK_API_KEYS or TITOK_API_KEYS_FILE")
        if self.body_bytes_in_flight < self.max_body_bytes:
            raise ValueError(
                f"body_bytes_in_flight {self.body_bytes_in_flight} is less than one body, max_body_bytes "
                f"{self.max_body_bytes}"
            )
        for name in ("max_images", "max_generate"):
            if getattr(self, name) > self.queue_images:
                raise ValueError(f"{name} {getattr(self, name)} is more than queue_images {self.queue_images} can take")
        return self

    @property
    def given(self) -> list[str]:
        """What was set, as in the environment; secrets show themselves as stars."""
        return [f"TITOK_{name.upper()}={getattr(self, name)}" for name in sorted(self.model_fields_set)]

    @property
    def device_threads(self) -> int:
        """Threads of a CPU device."""
        return self.threads or usable_cores()

    @property
    def image_threads(self) -> int:
        """Threads that decode and encode images."""
        return self.decode_threads or usable_cores()


def invalid_settings(error: ValidationError) -> str:
    """What is wrong with which settings, in one line."""
    return "; ".join(f"{'.'.join(map(str, place['loc']))}: {place['msg']}" for place in error.errors())
