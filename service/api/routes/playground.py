"""``GET /``: the playground, a web page served from files of the package."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.http.negotiation import choose_media_type
from service.http.page_files import PageFiles
from service.http.page_headers import page_headers
from service.version import VERSION

_HEADERS = {**page_headers({"img-src": "'self' blob:"}), "Vary": "Accept"}
_FILES = PageFiles(_HEADERS, packages=[("service.api", "playground")])
_INDEX = {
    "models": "/v1/models",
    "documentation": "/docs",
    "openapi": "/openapi.json",
    "health": "/healthz",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page, or an index of the API for clients that prefer JSON."""
    if choose_media_type(request.headers.get("accept"), ["text/html", "application/json"]) == "text/html":
        return await file(request, "index.html")
    index = {name: request.scope["root_path"] + path for name, path in _INDEX.items()}
    return JSONResponse({"service": "titok-service", "version": VERSION, **index}, headers={"Vary": "Accept"})


@router.get("/playground/{path:path}")
async def file(request: Request, path: str) -> Response:
    """A file of the page."""
    return await _FILES.get_response(path, request.scope)
