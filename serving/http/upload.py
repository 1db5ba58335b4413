"""Reading a body as it arrives, multipart or a little JSON, and refusing it at the first byte that is one too many.

The form parsers of the frameworks read a whole body before anybody can look at it. They also spool files to disk, and take text
where a file belongs. So this is written on python-multipart's push parser. Nothing here ever follows an address.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serving.contract.problems import Problem, bad_field, malformed, not_multipart, too_large
from serving.http.limits import InFlight, Limits

FIELD = "images"
TEXT_BYTES = 200
BODY_BYTES: Final = 16 * 1024  # of a JSON body
T = TypeVar("T", bound=BaseModel)


@dataclass
class Form:
    """The files of the field `images`, in order, and the text fields that were sent."""

    images: list[bytes] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class _Parts:
    """Collects a form's parts from the parser's callbacks; raises Problem at the first thing not allowed."""

    def __init__(self, limits: Limits, texts: Sequence[str]) -> None:
        self.limits = limits
        self.form = Form()
        self.complete = False
        self._allowed = texts
        self._name = ""
        self._chunks: list[bytes] = []
        self._size = 0
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = ""

    def on_part_begin(self) -> None:
        self._chunks, self._size, self._disposition = [], 0, ""

    def on_header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1].decode("latin-1")

    def on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise malformed("A part has no Content-Disposition header with a field name.")
        self._name = options[b"name"].decode("utf-8", "replace")[:100]
        if self._name == FIELD:
            self._check_image(bool(options.get(b"filename")))
        else:
            self._check_text(b"filename" in options)

    def _check_image(self, has_file_name: bool) -> None:
        if not has_file_name:
            raise bad_field(
                FIELD, f"The field {FIELD!r} holds text; send image files. Addresses are not followed and text is not decoded."
            )
        if len(self.form.images) == self.limits.images:
            raise too_large(f"More than {self.limits.images} images in one request.", self.limits.images)

    def _check_text(self, has_file_name: bool) -> None:
        name = self._name
        if name not in self._allowed:
            more = f" and text in {' and '.join(map(repr, self._allowed))}" if self._allowed else ""
            raise bad_field(name, f"Unknown form field {name!r}; this call takes files in the field {FIELD!r}{more} only.")
        if has_file_name:
            raise bad_field(name, f"The field {name!r} takes text, not a file.")
        if name in self.form.texts:
            raise bad_field(name, f"The field {name!r} was sent twice.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._name != FIELD and self._size > TEXT_BYTES:
            raise bad_field(self._name, f"The field {self._name!r} is longer than {TEXT_BYTES} bytes.")
        if self._size > self.limits.image_bytes:
            position = len(self.form.images) + 1
            raise too_large(f"Image {position} is larger than {self.limits.image_bytes:,} bytes.", self.limits.image_bytes)
        self._chunks.append(data[start:end])

    def on_part_end(self) -> None:
        content = b"".join(self._chunks)
        self._chunks = []
        if self._name == FIELD:
            self.form.images.append(content)
            return
        try:
            self.form.texts[self._name] = content.decode()
        except UnicodeDecodeError:
            raise bad_field(self._name, f"The field {self._name!r} is not UTF-8 text.") from None

    def on_end(self) -> None:
        self.complete = True


def _boundary(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise not_multipart("A compressed body (Content-Encoding) is not accepted; images are compressed already.")
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise not_multipart(f"The body must be multipart/form-data with image files in the field {FIELD!r}.")
    if not options.get(b"boundary"):
        raise malformed("The Content-Type header names no boundary.")
    return options[b"boundary"]


def _announced(request: Request, limits: Limits) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large(f"The body is {int(length):,} bytes, at most {limits.body_bytes:,} are accepted.", limits.body_bytes)


def asked(form: Form) -> list[str]:
    """What tells a form from another, whatever its boundary, the names of its files and the order of its texts."""
    texts = [part for pair in sorted(form.texts.items()) for part in pair]
    return [*texts, *(hashlib.sha256(data).hexdigest() for data in form.images)]


def busy() -> Problem:
    """503: as much is waiting as may."""
    return Problem(503, "busy", "Busy", "Too many images are waiting already; try again.", {"Retry-After": "1"})


@contextmanager
def _in_time(seconds: int) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise Problem(408, "too-slow", "Request timeout", f"The body did not arrive within {seconds} seconds.") from None


@asynccontextmanager
async def read_form(request: Request, limits: Limits, in_flight: InFlight, texts: Sequence[str] = ()) -> AsyncIterator[Form]:
    """The posted form: files, and the optional text fields named in `texts`; it counts as in flight until the block is left.

    Raises Problem 415 for a body that is not multipart. 422: a field is unknown, missing, there twice or of the wrong kind. 413:
    a limit is passed. 408: the body does not arrive in time. 503: all requests together hold too much.
    """
    boundary = _boundary(request)
    _announced(request, limits)
    if in_flight.full:
        raise busy()  # before a byte of the body is read
    parts = _Parts(limits, texts)
    taken = images = 0
    try:
        parser = _parser(boundary, parts)
        with _in_time(limits.read_seconds):
            async with asyncio.timeout(limits.read_seconds):
                async for chunk in request.stream():
                    if taken + len(chunk) > limits.body_bytes:
                        raise too_large(f"The body is larger than {limits.body_bytes:,} bytes.", limits.body_bytes)
                    if not in_flight.take(len(chunk)):
                        raise busy()
                    taken += len(chunk)
                    _write(parser, chunk)
                    if not in_flight.take(0, len(parts.form.images) - images):
                        raise busy()
                    images = len(parts.form.images)
        if not parts.complete:
            raise malformed("The multipart body ends before its closing boundary.")
        if not parts.form.images:
            raise bad_field(FIELD, f"No image: send 1 to {limits.images} files in the field {FIELD!r}.")
        yield parts.form
    finally:
        in_flight.give(taken, images)


def _parser(boundary: bytes, parts: _Parts) -> MultipartParser:
    names = (
        "on_part_begin on_part_data on_part_end on_header_begin on_header_field on_header_value on_header_end "
        "on_headers_finished on_end"
    )
    try:
        return MultipartParser(boundary, {name: getattr(parts, name) for name in names.split()})  # type: ignore[arg-type]
    except FormParserError as error:
        raise malformed(f"{error}.") from None


def _write(parser: MultipartParser, chunk: bytes) -> None:
    try:
        parser.write(chunk)
    except FormParserError as error:
        raise malformed(f"{error}.") from None


async def read_json(request: Request, kind: type[T]) -> T:
    """A small JSON body; Problem 415, 413, 408 or 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            415, "not-json", "Not application/json", "The body must be application/json.", {"Accept": "application/json"}
        )
    seconds, body = request.app.state.running.limits.read_seconds, b""
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise too_large(f"The body is larger than {BODY_BYTES:,} bytes.", BODY_BYTES)
    except TimeoutError:
        raise Problem(408, "too-slow", "Request timeout", f"The body did not arrive within {seconds} seconds.") from None
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"])) or "body"
        raise bad_field(name, f"{name}: {first['msg']}.") from None
