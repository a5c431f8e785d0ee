"""A reader of tar streams (POSIX ustar and pax, GNU long names): regular files and folders, nothing else."""

import re
from collections.abc import Iterator

from service.errors import BadRequest, Invalid
from service.intake.names import decoded, shown
from service.intake.sources import PIECE, Metered
from service.intake.unpacking import Unpacked

BLOCK = 512
_MAX_EXTENSION = 64 << 10
"""Bytes of one pax header or GNU long name."""
_MAX_PADDING = 1 << 20
_MAX_SIZE = 1 << 60
_OCTAL = re.compile(rb"[ \0]*([0-7]{1,12})[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")
_FILE, _FOLDER, _PAX, _PAX_GLOBAL, _LONG_NAME = b"0", b"5", b"x", b"g", b"L"
_KIND_NAMES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO"}


class _Extensions:
    """What pax headers and long-name blocks say about the next member."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None


def read_tar(source: Metered, target: Unpacked) -> None:
    """Unpack a whole stream. Raises `BadRequest` when it is broken, `Invalid` for what we do not take."""
    extensions = _Extensions()
    while (header := _exactly(source, BLOCK)) != bytes(BLOCK):
        _check(header)
        kind = header[156:157].replace(b"\0", _FILE)
        size = _number(header[124:136])
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
            _extend(extensions, kind, _small(source, size))
            continue
        name = extensions.name if extensions.name is not None else _name(header)
        size = extensions.size if extensions.size is not None else size
        extensions = _Extensions()
        if kind == _FOLDER and size == 0:
            target.add_folder(name)
        elif kind == _FILE and not name.endswith("/"):
            target.add_file(name, size, _content(source, size))
            _exactly(source, -size % BLOCK)
        else:
            what = _KIND_NAMES.get(kind, "no regular file or folder")
            raise Invalid(f"The archive's member {shown(name)} is {what}.", code="ARCHIVE_ENTRY_REFUSED")
    _check_padding(source)


def is_tar(head: bytes) -> bool:
    """Whether a stream that starts so can be a tar: by the magic of its first header."""
    return len(head) >= BLOCK and head[257:262] == b"ustar"


def _check(header: bytes) -> None:
    summed = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if header[257:262] != b"ustar" or _number(header[148:156]) != summed:
        raise malformed()


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: a size of 8 GiB and more does not fit in octal digits
        value = int.from_bytes(field[1:], "big")
    else:
        match = _OCTAL.fullmatch(field)
        if match is None:
            raise malformed()
        value = int(match[1], 8)
    if value > _MAX_SIZE:
        raise malformed()
    return value


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return decoded(prefix + b"/" + name if prefix else name)


def _extend(extensions: _Extensions, kind: bytes, data: bytes) -> None:
    if kind == _LONG_NAME:
        extensions.name = decoded(data.rstrip(b"\0"))
        return
    for key, value in _records(data):
        if key.startswith(b"GNU.sparse"):
            raise Invalid("Sparse members are not taken; pack with plain files.", code="ARCHIVE_ENTRY_REFUSED")
        if key not in (b"path", b"size"):
            continue
        if kind == _PAX_GLOBAL:
            raise malformed()
        if key == b"path":
            extensions.name = decoded(value)
        elif value.isdigit() and len(value) <= 18:
            extensions.size = int(value)
        else:
            raise malformed()


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
            raise malformed()
        yield match[2], data[match.end() : end - 1]
        at = end


def _small(source: Metered, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise malformed()
    data = _exactly(source, size)
    _exactly(source, -size % BLOCK)
    return data


def _content(source: Metered, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = source.read(min(size, PIECE))
        if not piece:
            raise _truncated()
        size -= len(piece)
        yield piece


def _exactly(source: Metered, size: int) -> bytes:
    return b"".join(_content(source, size))


def _check_padding(source: Metered) -> None:
    left = _MAX_PADDING
    while piece := source.read(PIECE):
        left -= len(piece)
        if left < 0 or piece.strip(b"\0"):
            raise BadRequest("The archive goes on after its end.", code="ARCHIVE_MALFORMED")


def malformed() -> BadRequest:
    """The bytes are no archive."""
    return BadRequest("The archive is malformed.", code="ARCHIVE_MALFORMED")


def _truncated() -> BadRequest:
    return BadRequest("The archive ends too early.", code="ARCHIVE_TRUNCATED")
