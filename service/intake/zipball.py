"""A reader of zip files (APPNOTE 6.3, with zip64): stored and deflated members, nothing encrypted, nothing linked.

The central directory is what counts, and each local header must agree with it: where they differ, two readers see two
archives.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from service.errors import BadRequest, Invalid
from service.intake.limits import MAX_ENTRIES
from service.intake.names import decoded, shown
from service.intake.sources import PIECE
from service.intake.unpacking import Unpacked

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_MAX_DIRECTORY = MAX_ENTRIES * 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR, _STRONG, _UTF8, _MASKED = 1, 1 << 3, 1 << 6, 1 << 11, 1 << 13
_UNIX = 3
_ZIP64_EXTRA = 1
_IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class _Member:
    """One entry of the central directory."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    start: int


def read_zip(file: BinaryIO, target: Unpacked) -> None:
    """Unpack a whole file. Raises `BadRequest` when it is broken, `Invalid` for what we do not take."""
    members = _directory(file)
    target.survey([member.name for member in members])
    starts = [_content_start(file, member) for member in members]
    _check_overlap(members, starts)
    for member, start in zip(members, starts, strict=True):
        if member.name.endswith("/") and member.size == 0:
            target.add_folder(member.name)
        else:
            target.add_file(member.name, member.size, _content(file, member, start))


def _directory(file: BinaryIO) -> list[_Member]:
    count, size, start, end = _find_directory(file)
    if count > MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise Invalid(f"An archive has at most {MAX_ENTRIES} entries.", code="ARCHIVE_TOO_MANY_ENTRIES")
    if start + size != end:
        raise _malformed()
    file.seek(start)
    data = _exactly(file, size)
    members, at = [], 0
    while at < size:
        member, at = _parse_member(data, at)
        members.append(member)
    if len(members) != count:
        raise _malformed()
    return members


def _find_directory(file: BinaryIO) -> tuple[int, int, int, int]:
    """Entries, bytes and start of the central directory, and where it must end."""
    length = file.seek(0, os.SEEK_END)
    tail_start = max(0, length - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = _exactly(file, length - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _malformed()
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    end = tail_start + at
    if at + _END.size + comment != len(tail) or disk or first_disk or here != count:
        raise _malformed()
    if 0xFFFF in (here, count) or _IN_ZIP64 in (size, start):
        return _find_zip64(file, end)
    return count, size, start, end


def _find_zip64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    file.seek(max(0, end - _LOCATOR.size))
    magic, disk, start64, disks = _LOCATOR.unpack(_exactly(file, _LOCATOR.size))
    if magic != b"PK\x06\x07" or disk or disks > 1 or start64 + _END64.size > end:
        raise _malformed()
    file.seek(start64)
    magic, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack(_exactly(file, _END64.size))
    if magic != b"PK\x06\x06" or disk or first_disk or here != count:
        raise _malformed()
    return count, size, start, start64


def _parse_member(data: bytes, at: int) -> tuple[_Member, int]:
    if len(data) - at < _CENTRAL.size:
        raise _malformed()
    fields = _CENTRAL.unpack_from(data, at)
    magic, made_by, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size = fields[:13]
    external, start = fields[15], fields[16]
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_size
    end = extra_at + extra_size + comment_size
    if magic != b"PK\x01\x02" or end > len(data):
        raise _malformed()
    size, packed, start = _from_zip64(data[extra_at : extra_at + extra_size], size, packed, start)
    raw_name = data[name_at:extra_at]
    mode = external >> 16 if made_by >> 8 == _UNIX else 0
    member = _Member(raw_name, decoded(raw_name), flags, method, crc, packed, size, mode, start)
    _check(member)
    return member, end


def _from_zip64(extra: bytes, *fields: int) -> tuple[int, ...]:
    """The fields in which 0xFFFFFFFF stands for a number in the zip64 extra, in the extra's order."""
    at, numbers = 0, b""
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA:
            numbers = extra[at + 4 : at + 4 + size]
        at += 4 + size
    resolved = []
    for field in fields:
        if field == _IN_ZIP64:
            if len(numbers) < 8:
                raise _malformed()
            resolved.append(int.from_bytes(numbers[:8], "little"))
            numbers = numbers[8:]
        else:
            resolved.append(field)
    return tuple(resolved)


def _check(member: _Member) -> None:
    if member.flags & (_ENCRYPTED | _STRONG | _MASKED):
        raise Invalid("Encrypted archives are not taken.", code="ARCHIVE_ENCRYPTED")
    kind = stat.S_IFMT(member.mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Invalid(
            f"The archive's member {shown(member.name)} is no regular file or folder.", code="ARCHIVE_ENTRY_REFUSED"
        )
    if member.method not in (_STORED, _DEFLATED):
        raise Invalid("Pack the zip with deflate or without compression.", code="ARCHIVE_METHOD_REFUSED")
    if member.method == _STORED and member.packed != member.size:
        raise _malformed()


def _content_start(file: BinaryIO, member: _Member) -> int:
    file.seek(member.start)
    magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    name = _exactly(file, name_size)
    extra = _exactly(file, extra_size)
    size, packed = _from_zip64(extra, size, packed)
    agrees = magic == b"PK\x03\x04" and name == member.raw_name and method == member.method
    if not flags & _DESCRIPTOR:
        agrees = agrees and (crc, packed, size) == (member.crc, member.packed, member.size)
    if not agrees or (flags ^ member.flags) & _ENCRYPTED:
        raise BadRequest("The zip's directory and its members disagree.", code="ARCHIVE_MALFORMED")
    start: int = member.start + _LOCAL.size + name_size + extra_size
    return start


def _check_overlap(members: list[_Member], starts: list[int]) -> None:
    """Members that share bytes are how 42 kB unpack to petabytes (Fifield, 2019)."""
    spans = sorted((member.start, start + member.packed) for member, start in zip(members, starts, strict=True))
    for (_, end), (following, _) in pairwise(spans):
        if following < end:
            raise Invalid("The zip's members overlap.", code="ARCHIVE_OVERLAP")


def _content(file: BinaryIO, member: _Member, start: int) -> Iterator[bytes]:
    """The unpacked bytes; never one more than declared. Raises `BadRequest` when they are not what was declared."""
    file.seek(start)
    size, crc = 0, 0
    for piece in _inflated(file, member):
        size += len(piece)
        if size > member.size:
            break
        crc = zlib.crc32(piece, crc)
        yield piece
    if (size, crc) != (member.size, member.crc):
        raise BadRequest(
            f"The zip's member {shown(member.name)} is not what its header says.", code="ARCHIVE_MALFORMED"
        )


def _inflated(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    left = member.packed
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while left > 0:
        piece = _exactly(file, min(left, PIECE))
        left -= len(piece)
        if member.method == _STORED:
            yield piece
            continue
        try:
            while piece:
                if unpacked := inflater.decompress(piece, PIECE):
                    yield unpacked
                piece = inflater.unconsumed_tail
            while member.method == _DEFLATED and left == 0 and (unpacked := inflater.decompress(b"", PIECE)):
                yield unpacked
        except zlib.error as error:
            raise _malformed() from error


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BadRequest("The archive ends too early.", code="ARCHIVE_TRUNCATED")
    return data


def _malformed() -> BadRequest:
    return BadRequest("The archive is malformed.", code="ARCHIVE_MALFORMED")
