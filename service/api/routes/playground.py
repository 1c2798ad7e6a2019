"""``GET /``: the playground, a web page served from files of the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.http.negotiation import choose_media_type, holds_etag
from service.http.page_headers import page_headers
from service.http.problems import NotFound
from service.version import VERSION

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE = "index.html"
_HEADERS = {
    **page_headers({"img-src": "'self' blob:"}),
    # URLs are the same in every version, so browsers revalidate each time, mostly with 304.
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}
_INDEX = {
    "models": "/v1/models",
    "documentation": "/docs",
    "openapi": "/openapi.json",
    "health": "/healthz",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def create_router() -> APIRouter:
    """The page at ``/`` and its files at ``/playground/``, read once and kept in memory (less than half a megabyte)."""
    router = APIRouter(include_in_schema=False)
    served = dict(_read(files("service.api") / "playground"))

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page, or an index of the API for clients that prefer JSON."""
        if choose_media_type(request.headers.get("accept"), ["text/html", "application/json"]) == "text/html":
            return _answer(request, served[_PAGE])
        index = {name: request.scope["root_path"] + path for name, path in _INDEX.items()}
        return JSONResponse({"service": "titok-service", "version": VERSION, **index}, headers={"Vary": "Accept"})

    @router.get("/playground/{path:path}")
    async def file(request: Request, path: str) -> Response:
        """A file of the page."""
        if path not in served:
            raise NotFound(f"The playground has no file {path[:80]!r}.")
        return _answer(request, served[path])

    return router


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, _File]]:
    """Files with a known media type, by their path in the folder."""
    found: list[tuple[str, _File]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif media_type := _MEDIA_TYPES.get(entry.name.rpartition(".")[2]):
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found.append((prefix + entry.name, _File(content, media_type, etag)))
    return found


def _answer(request: Request, file: _File) -> Response:
    headers = {"ETag": file.etag, **_HEADERS}
    if holds_etag(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
