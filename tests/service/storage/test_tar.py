import hashlib
import io
import tarfile
from typing import BinaryIO

import pytest

from service.storage.tar import TarLayout

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "model.safetensors": bytes(range(256)) * 5000,
    "a" * 60 + "/" + "b" * 60: b"prefix",
    "ü" * 90: b"pax",
}


def _layout() -> TarLayout:
    return TarLayout([(name, len(content)) for name, content in FILES.items()])


def _opener(name: str) -> BinaryIO:
    return io.BytesIO(FILES[name])


def test_another_reader_finds_the_same_files_and_no_dates_or_owners() -> None:
    layout = _layout()
    data = b"".join(layout.read(0, layout.size, _opener))
    assert len(data) == layout.size
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        found = {member.name: content.read() for member in members if (content := archive.extractfile(member))}
    assert found == FILES
    assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}


def test_any_range_is_a_slice_of_the_whole() -> None:
    layout = _layout()
    data = b"".join(layout.read(0, layout.size, _opener))
    assert layout.sha256(_opener) == hashlib.sha256(data).hexdigest()
    for start in (0, 1, 511, 512, 513, 600_000, layout.size - 1):
        for length in (1, 512, 300_000, layout.size):
            assert b"".join(layout.read(start, length, _opener)) == data[start : start + length]


def test_pieces_are_small() -> None:
    layout = _layout()
    assert max(len(piece) for piece in layout.read(0, layout.size, _opener)) <= 256 << 10


def test_a_file_that_shrank_is_noticed() -> None:
    layout = TarLayout([("config.json", 10)])
    with pytest.raises(EOFError):
        list(layout.read(0, layout.size, _opener))
