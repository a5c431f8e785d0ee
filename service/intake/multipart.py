"""multipart/form-data read part by part from a stream: nothing is spooled, and no part is held in memory."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest, Invalid
from service.intake.sources import Source, drain

MAX_PARTS = 16
MAX_FIELD = 64 << 10
_READ = 256 << 10
_MAX_HEADERS = 8
_MAX_HEADER = 4096


class Part:
    """One part; a source that must be read before the next part is asked for (the rest is skipped)."""

    def __init__(self, body: "Multipart", name: str) -> None:
        self._body = body
        self._digest = hashlib.sha256()
        self.name = name

    def read(self, size: int) -> bytes:
        """At most `size` bytes of the part's content."""
        piece = self._body.take(size)
        self._digest.update(piece)
        return piece

    def text(self) -> str:
        """The whole content of a small text field. Raises `BadRequest` when it is not small or not text."""
        content = b""
        while piece := self.read(MAX_FIELD):
            content += piece
            if len(content) > MAX_FIELD:
                raise BadRequest(f"A text field holds at most {MAX_FIELD} bytes.", code="FIELD_TOO_LARGE")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("Text fields are UTF-8.", code="MULTIPART_MALFORMED") from error

    def sha256(self) -> str:
        """Hex digest of what was read."""
        return self._digest.hexdigest()


class Multipart:
    """The parts of one body, in their order."""

    def __init__(self, source: Source, content_type: str) -> None:
        self._source = source
        self._data = bytearray()
        self._events: deque[bytes | dict[str, str] | None] = deque()
        self._headers: dict[str, str] = {}
        self._field = self._value = b""
        self._finished = False
        self.digests: dict[str, str] = {}
        _, options = parse_options_header(content_type)
        try:
            self._parser = MultipartParser(
                options.get(b"boundary", b""),
                {
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_end": self._on_end,
                },
                max_header_count=_MAX_HEADERS,
                max_header_size=_MAX_HEADER,
            )
        except FormParserError as error:
            raise _malformed() from error
        if not options.get(b"boundary"):
            raise _malformed()

    def __iter__(self) -> Iterator[Part]:
        """Each part once; what is left unread of one is skipped. Raises `BadRequest` when the body is malformed."""
        for _ in range(MAX_PARTS):
            headers = self._next_headers()
            if headers is None:
                drain(self._source)
                return
            part = Part(self, _field_name(headers))
            if part.name in self.digests:
                raise Invalid("Each part can be sent once.", code="PART_REPEATED")
            yield part
            drain(part)
            self.digests[part.name] = part.sha256()
        if self._next_headers() is not None:
            raise BadRequest(f"A form has at most {MAX_PARTS} parts.", code="TOO_MANY_PARTS")
        drain(self._source)

    def sha256(self) -> str:
        """Hex digest of names and contents: a client that repeats a form draws another boundary, so not of the body."""
        return hashlib.sha256(json.dumps(sorted(self.digests.items())).encode()).hexdigest()

    def take(self, size: int) -> bytes:
        """At most `size` bytes of the part that is being read; empty at its end."""
        while not self._events:
            self._pull()
        first = self._events[0]
        if first is None:
            return b""
        assert isinstance(first, bytes)
        self._events.popleft()
        if len(first) > size:
            self._events.appendleft(first[size:])
        return first[:size]

    def _next_headers(self) -> dict[str, str] | None:
        while not self._finished or self._events:
            while not self._events and not self._finished:
                self._pull()
            if self._events and isinstance(headers := self._events.popleft(), dict):
                return headers
        return None

    def _pull(self) -> None:
        piece = self._source.read(_READ)
        if not piece:
            raise _malformed()
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed() from error
        self._flush()

    def _flush(self) -> None:
        if self._data:
            self._events.append(bytes(self._data))
            self._data.clear()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        # Gathered, since a hostile body can make the parser call once per byte.
        self._data += data[start:end]

    def _on_part_end(self) -> None:
        self._flush()
        self._events.append(None)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._field = self._value = b""

    def _on_headers(self) -> None:
        self._events.append(self._headers)
        self._headers = {}
        if len(self._events) > 4 * MAX_PARTS:
            raise BadRequest(f"A form has at most {MAX_PARTS} parts.", code="TOO_MANY_PARTS")

    def _on_end(self) -> None:
        self._finished = True


def _field_name(headers: dict[str, str]) -> str:
    disposition, options = parse_options_header(headers.get("content-disposition", ""))
    name = options.get(b"name", b"")
    if disposition != b"form-data" or not name:
        raise _malformed()
    return name.decode("utf-8", "replace")


def _malformed() -> BadRequest:
    return BadRequest("The body is not well-formed multipart/form-data.", code="MULTIPART_MALFORMED")
