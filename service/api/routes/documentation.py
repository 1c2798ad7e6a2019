"""``GET /docs``: Swagger UI, served from files of the package."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.http.page_headers import page_headers

_FILES = "/static-offline-docs"
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

router = APIRouter(include_in_schema=False)
router.mount(_FILES, StaticFiles(packages=[("fastapi_offline", "static")]))


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI."""
    app, root = request.app, request.scope["root_path"]
    page = get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=f"{app.title}: API",
        swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_FILES}/favicon.png",
    )
    page.headers.update(page_headers(_policy(bytes(page.body))))
    return page


def _policy(page: bytes) -> dict[str, str]:
    """Allows only the inline script of the page, by its digest; Swagger UI needs inline styles."""
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(page)]
    return {
        "script-src": " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
    }
