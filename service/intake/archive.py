"""Archives by their magic bytes: tar, plain or packed by gzip or zstd, unpacked as it flows in; zip, spooled first."""

import zlib
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from service.errors import BadRequest, UnsupportedMediaType
from service.intake.limits import Limits
from service.intake.sources import PIECE, Metered, Source, drain, pieces
from service.intake.tarball import BLOCK, is_tar, read_tar
from service.intake.unpacking import Policy, Unpacked
from service.intake.zipball import read_zip

MEDIA_TYPES = frozenset(
    """application/zip application/x-zip-compressed application/x-tar application/gzip application/x-gzip
    application/zstd application/octet-stream""".split()
)
_ZIP, _GZIP, _ZSTD = b"PK", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_WINDOW = 32 << 20
"""Memory that one zstd stream may ask for: enough for every level up to 20."""


def check_media_type(header: str | None) -> None:
    """Raises `UnsupportedMediaType` for a Content-Type that is no archive's; which kind it is, the bytes decide."""
    if (header or "").partition(";")[0].strip().lower() not in MEDIA_TYPES:
        raise UnsupportedMediaType(
            "Send an archive: application/zip, application/x-tar, application/gzip or application/zstd; or "
            "multipart/form-data with the part `file`."
        )


def unpack(source: Source, folder: Path, limits: Limits, policy: Policy) -> Unpacked:
    """Unpack an archive below `folder/files`, an empty folder's; reads `source` to its end."""
    archive = Metered(source)
    files = folder / "files"
    files.mkdir()
    target = Unpacked(files, limits, policy, lambda: archive.count)
    head = archive.peek(BLOCK)
    if head.startswith(_ZIP):
        _unpack_zip(archive, folder / "spool", target, limits)
    else:
        _unpack_tar(archive, head, target)
    drain(archive)
    return target


def _unpack_tar(archive: Metered, head: bytes, target: Unpacked) -> None:
    stream = archive
    if head.startswith(_GZIP):
        stream = Metered(_Gunzip(archive))
    elif head.startswith(_ZSTD):
        stream = Metered(_Unzstd(archive))
    try:
        if not is_tar(stream.peek(BLOCK)):
            raise BadRequest("This is no zip, tar, tar.gz or tar.zst archive.", code="ARCHIVE_UNKNOWN")
        read_tar(stream, target)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRequest(
            "The archive's compression is broken, or needs more than 32 MiB of memory.", code="ARCHIVE_MALFORMED"
        ) from error


def _unpack_zip(archive: Metered, spool: Path, target: Unpacked, limits: Limits) -> None:
    with spool.open("w+b") as file:
        for count, piece in enumerate(pieces(archive)):
            if count % 64 == 0:
                limits.check_disk()
            file.write(piece)
        file.seek(0)
        read_zip(file, target)
    spool.unlink()


class _Gunzip:
    """A gzip stream, of several members if need be, unpacked with bounded memory."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._packed = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """At most `size` unpacked bytes. Raises `zlib.error` and `BadRequest` when the stream is broken."""
        while not self._ended:
            if not self._packed:
                self._packed = self._source.read(PIECE)
            if not self._packed:
                raise BadRequest("The archive ends too early.", code="ARCHIVE_TRUNCATED")
            unpacked = self._inflater.decompress(self._packed, size)
            self._packed = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._next_member()
            if unpacked:
                return unpacked
        return b""

    def _next_member(self) -> None:
        self._packed = self._inflater.unused_data or self._source.read(PIECE)
        self._ended = not self._packed
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)


class _Unzstd:
    """A zstd stream, of several frames if need be."""

    def __init__(self, source: Source) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._reader = unpacker.stream_reader(cast(BinaryIO, source), read_across_frames=True)

    def read(self, size: int) -> bytes:
        """At most `size` unpacked bytes. Raises `zstandard.ZstdError` when the stream is broken."""
        return self._reader.read(size)
