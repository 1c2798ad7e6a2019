"""``GET /pages/...``: files of the operator's own folder, such as a page that decodes codes in the browser.

Its pages may load and request what is of the same origin only, may run WebAssembly, and are cross-origin isolated, which
WebAssembly needs for threads.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.http.page_files import PageFiles
from service.http.page_headers import page_headers

_HEADERS = {
    **page_headers(
        {"script-src": "'self' 'wasm-unsafe-eval'", "worker-src": "'self' blob:", "img-src": "'self' blob: data:"}
    ),
    "Cross-Origin-Embedder-Policy": "require-corp",
}


def own_pages_router(folder: Path) -> APIRouter:
    """Routes to the files of a folder; a path that ends in ``/`` is its ``index.html``."""
    files = PageFiles(_HEADERS, directory=folder, html=True)
    router = APIRouter(include_in_schema=False)

    @router.get("/pages/{path:path}")
    async def own_page(request: Request, path: str) -> Response:
        """A file."""
        return await files.get_response(path, request.scope)

    return router
