"""Settings of the service: environment variables ``TITOK_*``, or flags of ``titok serve`` of the same names."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, DirectoryPath, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.checkpoints.bundled import DEFAULT_VARIANT
from models.preprocessing_options import Color, JpegScale, PreprocessingOptions
from service.cpu_quota import usable_cores
from service.redis_url import RedisUrl

MiB = 1024 * 1024
ImageFormat = Literal["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIC"]
LogFormat = Literal["auto", "json", "text"]
_DEVICE = re.compile(r"cpu|cuda:\d{1,3}")
_ORIGIN = re.compile(r"https?://[\w.\-\[\]:]+", re.ASCII)

_RATE = re.compile(
    r"(?P<images>[1-9]\d{0,9}) ?(?:/|per) ?(?P<units>[1-9]\d{0,4})? ?(?P<unit>second|minute|hour|day)s?", re.IGNORECASE
)
_UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


@lru_cache(maxsize=1024)
def parse_rate(text: str) -> tuple[int, int]:
    """Images and seconds of a rate: ``100/second``, ``5000 per 10 minutes``. Raises ``ValueError``."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is no rate; write 100/second, 5000/minute or 5000 per 10 minutes")
    return int(match["images"]), int(match["units"] or 1) * _UNIT_SECONDS[match["unit"].lower()]


def check_rate(text: str) -> str:
    """Gives back a well-formed rate. Raises ``ValueError``."""
    parse_rate(text)
    return text


class Settings(BaseSettings):
    """All settings of the service, validated."""

    model_config = SettingsConfigDict(env_prefix="TITOK_", env_ignore_empty=True, extra="ignore", frozen=True)

    tokenizer: str = Field(DEFAULT_VARIANT, description="Variant name of the tokenizer.")
    tokenizer_weights: str | None = Field(
        None,
        description="Weights of the tokenizer: a file, a folder with config.json, or a Hugging Face hub id. Default: "
        "the weights of the variant.",
    )
    generator: str | None = Field(
        "auto",
        description="Variant name of the generator. 'auto': the generator of the tokenizer, if it has one; 'off': no "
        "generator.",
    )
    generator_weights: str | None = Field(None, description="Weights of the generator, as for the tokenizer.")
    devices: str = Field(
        "auto",
        description="Devices that run the models: 'cpu', 'cuda' (all GPUs), 'cuda:1', 'cuda:0,cuda:1', or 'auto' "
        "(all GPUs if there are any, else the CPU).",
    )
    dtype: Literal["auto", "float32", "tf32", "tf32x3", "float16", "bfloat16"] = Field(
        "auto",
        description="Number format. 'auto' lowers the precision of the image decoder only, where that is faster; "
        "token ids stay those of float32. Every other format below float32 applies to all networks and changes token "
        "ids, so that the revision changes too. 'tf32' and 'tf32x3' (three passes, close to float32) need a CUDA "
        "device.",
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="What computes the tokenizer on a CPU. 'auto': OpenVINO for the encoder and the decoder where it is "
        "installed and was faster when the worker started, else PyTorch. Token ids do not depend on it.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder in which OpenVINO's graphs are kept between starts. Default: they are made at each start.",
    )
    cuda_graphs: bool = Field(True, description="Run batches on CUDA devices as CUDA graphs, recorded at start-up.")
    workers: Literal["auto", "process", "inline"] = Field(
        "auto",
        description="Process model. 'process' (same as 'auto'): one worker process for each device, separate from "
        "the front-end processes that answer HTTP. 'inline': one process for everything.",
    )
    threads: int = Field(
        0, ge=0, le=256, description="Compute threads of a CPU device. 0: one for each available core."
    )
    front_ends: int = Field(
        0, ge=0, le=64, description="Number of processes that answer HTTP. 0: one on a CPU, two for each GPU."
    )

    host: str = Field("127.0.0.1", description="Address to listen on. 0.0.0.0: all interfaces.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API. 0: chosen by the system.")
    admin_port: int = Field(
        8001, ge=0, le=65535, description="Port of /metrics and the health routes. Never expose it to the public."
    )
    admin_host: str = Field(
        "127.0.0.1", description="Address of the admin port, which needs no key. 0.0.0.0: all interfaces."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated API keys: plain keys, which have every role, or hashed keys, "
        "`NAME:ROLE+ROLE:sha256:HEX[:RATE]` (created by `titok keys new`). Without keys here or in a file, no key is "
        "required.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="TOML file of hashed API keys, in addition to TITOK_API_KEYS. Changes are reloaded within a "
        "second ([how](security.md)).",
    )
    rate_limit: Annotated[str, AfterValidator(check_rate)] | None = Field(
        None,
        description="Rate limit in images for each API key without its own rate: `100/second` or `5000 per 10 "
        "minutes`. Counted in Redis for all processes together if Redis is configured, else by each front end.",
    )
    anonymous_rate_limit: Annotated[str, AfterValidator(check_rate)] | None = Field(
        None,
        description="Rate limit in images for each client address, when no API keys are set. Behind a proxy that is not "
        "in TITOK_TRUSTED_PROXIES, all clients share the address of the proxy.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated origins (`https://app.example.com`) whose pages may call the API, or `*`. "
        "Default: none.",
    )

    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated addresses and networks (`10.0.0.0/8`) of reverse proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` state the client's address and scheme, or `*`. Default: none.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path prefix that the reverse proxy removes from requests, such as `/titok`.",
    )
    playground: bool = Field(True, description="Serve the playground at `/`.")
    pages_dir: DirectoryPath | None = Field(
        None,
        description="Folder of your own pages, served at `/pages/` without a key, for example one that decodes in the "
        "browser ([how](export.md#in-a-browser)).",
    )

    cache: Literal["auto", "memory", "redis", "off"] = Field(
        "auto",
        description="Where codes of encoded images are cached: 'memory' of each process, 'redis', or 'off'. 'auto': "
        "Redis if TITOK_REDIS_URL is set, else memory.",
    )
    cache_scope: Literal["shared", "key"] = Field(
        "shared",
        description="Who shares cached codes: all callers ('shared'), or each API key separately ('key'). A shared "
        "cache reveals whether another caller has sent the same image.",
    )
    lookup: bool = Field(True, description="Enable /v1/codes: look up cached codes by the SHA-256 of an image file.")
    cache_entries: int = Field(
        100_000,
        ge=1,
        description="Maximum codes in the in-memory cache, about 500 bytes each. An image takes two. Latents count as one "
        "code for each 512 bytes.",
    )
    cache_ttl: int = Field(30 * 24 * 3600, ge=0, description="Seconds until a code in Redis expires. 0: never.")
    cache_namespace: str = Field(
        "titok", pattern=r"^[\w.-]{1,64}$", description="Key prefix in Redis, so that services can share it."
    )
    cache_value_bytes: int = Field(
        65_600,
        ge=64,
        description="Maximum size of a value in Redis. Larger values are neither written nor read. The latents of "
        "the published TiTok variants have up to 65,536 bytes.",
    )
    cache_front_entries: int = Field(
        10_000,
        ge=0,
        description="Maximum codes that each process caches in memory in front of Redis, counted as above. 0: none.",
    )
    cache_lease: float = Field(
        2.0, ge=0, le=60, description="Seconds to wait for an image that another front end is encoding. 0: do not wait."
    )
    picture_cache_bytes: int = Field(
        32 * MiB, ge=0, description="Bytes of rendered images (/v1/images/...) that each process caches. 0: none."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis URL: `redis://user:password@host:6379/0`, `rediss://` (TLS), `unix://`, "
        "`redis+sentinel://host:26379,host:26379/service`, `redis+cluster://` ([options](cache.md#redis-urls)).",
    )
    redis_timeout: float = Field(
        0.01, gt=0, le=1, description="Timeout of a Redis command in seconds. A timeout counts as a cache miss."
    )

    max_connections: int = Field(
        1000,
        ge=2,
        le=100_000,
        description="Maximum open connections of each front end. A new one replaces an idle one (else 503).",
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1024, le=MiB, description="Maximum size of the request line and headers (else 431)."
    )
    header_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds to receive the request headers, from their first byte (else 408)."
    )
    max_body_bytes: int = Field(32 * MiB, ge=1024, description="Maximum size of a request body (else 413).")
    max_json_bytes: int = Field(
        16 * MiB, ge=1024, description="Maximum size of a JSON body (else 413), if less than TITOK_MAX_BODY_BYTES."
    )
    body_bytes_in_flight: int = Field(
        256 * MiB, ge=1024, description="Maximum size of all request bodies in a front end together (else 429)."
    )
    decoded_bytes_in_flight: int = Field(
        1024 * MiB,
        ge=MiB,
        description="Maximum memory for image decoding in each front end. Further images wait; a larger image is "
        "decoded alone.",
    )
    formats: Annotated[tuple[ImageFormat, ...], NoDecode] = Field(
        (),
        description="Comma-separated image formats to accept: JPEG, PNG, WEBP, AVIF, GIF, BMP, TIFF, HEIC. Default: all; "
        "HEIC needs the package pi-heif.",
    )
    max_pixels: int = Field(
        40_000_000,
        ge=1,
        description="Maximum pixels of an image, checked in its header (else 413). With TITOK_JPEG_SCALE=auto, a JPEG "
        "image counts at the scale at which it is decoded, and may have up to eight times as many.",
    )
    color: Color = Field(
        "srgb",
        description="Colors of images: 'srgb' converts them to sRGB by the profile of the file; 'raw' takes the stored "
        "values, as the published evaluation does. Part of the revision.",
    )
    jpeg_scale: JpegScale = Field(
        "auto",
        description="Scale of JPEG images: 'auto' decodes a large one at a half, a quarter or an eighth of its size, but "
        "at no less than four times the size of the model; 'exact' never does. Part of the revision.",
    )
    truncated: Literal["refuse", "accept"] = Field(
        "refuse",
        description="Images that are cut off: 'refuse' (400), or 'accept' what is there (JPEG, PNG, GIF, BMP).",
    )
    max_images: int = Field(64, ge=1, le=4096, description="Maximum images of an encode or decode request.")
    max_generate: int = Field(16, ge=1, le=1024, description="Maximum images of a generate request.")
    max_batch_size: int = Field(
        0, ge=0, le=4096, description="Maximum batch size of a device. 0: found by measurement at start-up."
    )
    batch_seconds: float = Field(
        0.5, gt=0, le=60, description="Maximum duration of a batch in seconds. Larger batches are not formed."
    )
    max_wait_ms: float = Field(
        0.0, ge=0, le=10_000, description="Milliseconds that an idle device waits for a larger batch."
    )
    queue_images: int = Field(
        512,
        ge=1,
        description="Maximum images in each queue of a front end. A request waits up to 2 seconds for room (else 429).",
    )
    queue_bytes: int = Field(
        256 * MiB, ge=MiB, description="Maximum size in bytes of each queue of a front end (else 429)."
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="Threads of each front end that decode image files. 0: its share of the cores."
    )
    request_timeout: float = Field(30.0, gt=0, le=3600, description="Deadline of a request in seconds (else 504).")
    body_timeout: float = Field(20.0, gt=0, le=3600, description="Seconds to receive the request body (else 408).")
    shutdown_delay: float = Field(
        0.5, ge=0, le=300, description="Seconds after SIGTERM to accept requests while /readyz answers 503."
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=3600, description="Seconds to finish accepted requests after TITOK_SHUTDOWN_DELAY."
    )
    heartbeat_seconds: float = Field(
        10.0, ge=0.2, le=3600, description="Seconds without a heartbeat after which a process is replaced."
    )
    batch_timeout: float = Field(
        120.0, gt=0, le=3600, description="Seconds of a single batch after which the worker is replaced."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level.")
    log_format: LogFormat = Field(
        "auto",
        description="Format of log lines: 'json' or 'text'. 'auto': text if standard error is a terminal, else JSON.",
    )
    access_log: bool = Field(True, description="Log one line for each request ([its fields](operations.md#log-lines)).")

    @property
    def preprocessing(self) -> PreprocessingOptions:
        """How images are decoded."""
        return PreprocessingOptions(color=self.color, jpeg_scale=self.jpeg_scale)

    @field_validator("api_keys", "cors_origins", "trusted_proxies", "formats", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(item for part in value.split(",") if (item := part.strip())) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin[:80]!r} is not an origin. Expected https://app.example.com, without a path, or *"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            if proxy != "*":
                ip_network(proxy)
        return value

    @field_validator("devices")
    @classmethod
    def _name_devices(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if names not in (["auto"], ["cuda"]) and not all(_DEVICE.fullmatch(name) for name in names):
            raise ValueError(
                f"{value[:80]!r} is not a device. Expected auto, cpu, cuda, cuda:N or a list cuda:N,cuda:M"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{value[:80]!r} lists a device twice")
        return ",".join(names)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            RedisUrl.parse(value.get_secret_value())
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
                raise ValueError(f"{name} {getattr(self, name)} is more than queue_images {self.queue_images}")
        return self

    @property
    def given(self) -> list[str]:
        """The settings that were set explicitly, as ``TITOK_NAME=value``; secrets are masked."""
        return [f"TITOK_{name.upper()}={getattr(self, name)}" for name in sorted(self.model_fields_set)]

    @property
    def device_threads(self) -> int:
        """Number of compute threads of a CPU device."""
        return self.threads or usable_cores()

    @property
    def image_threads(self) -> int:
        """Number of threads that decode and encode image files."""
        return self.decode_threads or usable_cores()


def invalid_settings(error: ValidationError) -> str:
    """One line that names each invalid setting and its error."""
    return "; ".join(f"{'.'.join(map(str, place['loc']))}: {place['msg']}" for place in error.errors())
