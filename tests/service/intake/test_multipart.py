import io

import pytest

from service.errors import BadRequest, Invalid
from service.intake.multipart import Multipart
from service.intake.sources import pieces
from tests.uploads import form


class Sliced:
    """A source that gives at most so many bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._file, self._size = io.BytesIO(data), size

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._size))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1 << 20])
def test_parts_come_whole_however_the_body_is_sliced(size: int) -> None:
    content = b"\r\n--limi\r\n--limi-t\r\n-" * 50 + bytes(range(256))
    body, kind = form({"file": content, "name": b"n", "empty": b""})
    parts = {part.name: b"".join(pieces(part)) for part in Multipart(Sliced(body, size), kind)}
    assert parts == {"file": content, "name": b"n", "empty": b""}


def test_what_is_not_read_is_skipped_and_still_hashed() -> None:
    body, kind = form({"file": b"x" * 100_000, "name": b"n"})
    skipped, read = Multipart(io.BytesIO(body), kind), Multipart(io.BytesIO(body), kind)
    assert [part.name for part in skipped] == ["file", "name"]
    assert [part.read(10) for part in read] == [b"x" * 10, b"n"]
    assert skipped.sha256() == read.sha256()


def test_the_digest_is_of_the_parts_not_of_the_boundary() -> None:
    digests = []
    for boundary, content in (("a", b"x"), ("bb", b"x"), ("a", b"y")):
        body, kind = form({"file": content}, boundary)
        multipart = Multipart(io.BytesIO(body), kind)
        assert [part.name for part in multipart] == ["file"]
        digests.append(multipart.sha256())
    assert digests[0] == digests[1] != digests[2]


def test_a_part_twice() -> None:
    body, kind = form({"name": b"a"})
    twice = body[: body.rindex(b"--limit--")] + body
    with pytest.raises(Invalid) as error:
        list(Multipart(io.BytesIO(twice), kind))
    assert error.value.code == "PART_REPEATED"


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'b' * 300}"]
)
def test_a_boundary_is_needed(kind: str) -> None:
    with pytest.raises(BadRequest):
        Multipart(io.BytesIO(b""), kind)


@pytest.mark.parametrize(
    "header", ["Content-Disposition: attachment", "X: y", "Content-Disposition: form-data", "A: " + "b" * 5000]
)
def test_a_part_needs_a_name(header: str) -> None:
    body = f"--limit\r\n{header}\r\n\r\nx\r\n--limit--\r\n".encode()
    with pytest.raises(BadRequest):
        list(Multipart(io.BytesIO(body), "multipart/form-data; boundary=limit"))
