"""The pages: a closed list of files, read once when the service starts, served at `/`, `/label`, `/watch` and under `/page/`.

They need no key, since they hold nothing of a patient or of the site; what they then ask for under `/v1` does. Nothing else of
the disk can be reached: a path is looked up in the list, never joined to a folder.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent
INDEX: Final = "index.html"
LABEL: Final = "label.html"
WATCH: Final = "watch.html"
ADDRESSES: Final = {INDEX: "/", LABEL: "/label", WATCH: "/watch"}  # of the documents; all else is under /page/
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
FILES: Final = (
    INDEX,
    LABEL,
    WATCH,
    "page.css",
    "icon.svg",
    "agreement.css",
    "label.css",
    "look.css",
    "watch.css",
    "address.js",
    "agreement.js",
    "ahead.js",
    "answers.js",
    "cell.js",
    "dialogs.js",
    "differential.js",
    "disputes.js",
    "files.js",
    "gallery.js",
    "history.js",
    "kinds.js",
    "label.js",
    "labelling.js",
    "language.js",
    "microscope.js",
    "notices.js",
    "page.js",
    "pictures.js",
    "presence.js",
    "queue.js",
    "reading.js",
    "record.js",
    "references.js",
    "report.js",
    "review.js",
    "selection.js",
    "service.js",
    "sha256.js",
    "specimen.js",
    "sweep.js",
    "tiles.js",
    "upload.js",
    "watch.js",
    "words.js",
    "worklist.js",
    "zoom.js",
    "words/de.json",
    "words/en.json",
)
# Every answer of the service has it (serving/http/layer.py). Scripts, styles and calls from here only, nothing inline, no text
# made into code; `blob:` are the user's own files, shown without being sent back.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
CACHE: Final = "no-cache"  # kept by the browser, but asked for by its ETag: a new version shows at once


@dataclass(frozen=True)
class StaticFile:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "StaticFile":
        """Read it from disk; raises OSError where it is not there."""
        content = path.read_bytes()
        # Weak: it names the content, and not the bytes, of which there are others where it travels compressed.
        return cls(content, MEDIA_TYPES[path.suffix], f'W/"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """The file, or 304 to a browser that has it."""
        headers = {"Cache-Control": CACHE, "ETag": self.etag}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.etag.removeprefix("W/") in known:
            return Response(status_code=304, headers={**headers, "Vary": "Accept-Encoding"})
        return Response(self.content, headers=headers, media_type=self.media_type)


def add_page(app: FastAPI) -> None:
    """Add the routes of the pages to the application; they are no part of its OpenAPI document."""
    for name in FILES:
        file = StaticFile.read(FOLDER / name)
        app.add_route(ADDRESSES.get(name, f"/page/{name}"), _route(file), include_in_schema=False)


def _route(file: StaticFile) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return file.answer(request)

    return answer
