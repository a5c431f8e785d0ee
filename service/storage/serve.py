"""Answers that carry stored bytes: ranges, conditions and digests as RFC 9110 and RFC 9530 have them."""

import base64
import logging
import re
from collections.abc import Iterator

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.errors import InternalError, RangeNotSatisfiable
from service.storage.disposition import disposition
from service.storage.verified import Reader, verified

log = logging.getLogger(__name__)

READ_FIRST_BYTES = 16 << 20
"""Up to here bytes are read twice, so that damage is told by a problem document and not by a broken connection."""

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def serve(
    request: Request,
    *,
    size: int,
    sha256: str,
    media_type: str,
    filename: str,
    read: Reader,
    extra: dict[str, str] | None = None,
) -> Response:
    """The bytes of `read(start, length)`: whole, one range, or 304.

    `sha256` is the hex digest of all bytes: the strong ETag and the Repr-Digest. Raises `RangeNotSatisfiable`, and
    `InternalError` where the bytes are others: before the answer while they are few, else before the last of them, so
    that the connection breaks.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": repr_digest(sha256),
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition(filename),
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        **(extra or {}),
    }
    if _is_known(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    wanted = _wanted(request, etag, size)
    start, length = wanted or (0, size)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    headers["Content-Length"] = str(length)
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    if start + length <= READ_FIRST_BYTES:
        for _ in _told(request, verified(read, start, length, size=size, sha256=sha256)):
            pass
    body = _told(request, verified(read, start, length, size=size, sha256=sha256))
    return StreamingResponse(body, status, headers, media_type)


def _told(request: Request, body: Iterator[bytes]) -> Iterator[bytes]:
    """The same; damage is counted and logged, for the answer may be under way already."""
    try:
        yield from body
    except InternalError as error:
        request.app.state.telemetry.damaged("download")
        log.error("%s at %s", error.code, request.url.path)
        raise


def _is_known(if_none_match: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags


def _wanted(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Start and length; None, for everything, when the header is malformed, outdated or has several ranges."""
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match[1] == match[2] == "" or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match[1], match[2]
    if first == "":
        length = min(int(last), size)
        start = size - length
    else:
        start = int(first)
        if last and int(last) < start:
            return None
        length = min(int(last) if last else size - 1, size - 1) - start + 1
    if length <= 0:
        raise RangeNotSatisfiable("The range lies outside the file.", headers={"Content-Range": f"bytes */{size}"})
    return start, length


def repr_digest(sha256: str) -> str:
    """The field of RFC 9530 for a hex digest."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
