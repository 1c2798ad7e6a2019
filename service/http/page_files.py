"""Files of web pages, with the headers that browsers need to use them."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from os import PathLike

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

# A system may say otherwise, or nothing.
for suffix, media_type in {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}.items():
    mimetypes.add_type(media_type, suffix)


class PageFiles(StaticFiles):
    """The files of pages in a folder or in packages, with ``headers`` on every response.

    URLs are the same in every version, so browsers revalidate each time, mostly with 304.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        directory: PathLike[str] | None = None,
        packages: list[str | tuple[str, str]] | None = None,
        html: bool = False,
    ) -> None:
        super().__init__(directory=directory, packages=packages, html=html)
        self._headers = {**headers, "Cache-Control": "no-cache"}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with the headers."""
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response
