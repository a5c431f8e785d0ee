import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import BadRequest, InsufficientStorage, Invalid, PayloadTooLarge
from service.intake.archive import unpack
from service.intake.limits import Limits
from service.intake.unpacking import Policy, Unpacked
from tests.uploads import member, tar, zipped

KEEP_ALL = Policy(lambda name, head: True)
FILES = {"config.json": b"{}", "sub/model.safetensors": bytes(range(256)) * 8000, "empty": b""}


def _limits(folder: Path, total: int = 1 << 30, reserve: int = 0) -> Limits:
    return Limits("model", total, folder, reserve)


def _unpack(body: bytes, folder: Path, policy: Policy = KEEP_ALL, total: int = 1 << 30) -> Unpacked:
    return unpack(io.BytesIO(body), folder, _limits(folder, total), policy)


def _contents(unpacked: Unpacked) -> dict[str, bytes]:
    return {name: (unpacked.folder / name).read_bytes() for name in unpacked.files}


def _pax(files: dict[str, bytes], format_: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
    return target.getvalue()


def _streamed_zip(files: dict[str, bytes], *, zip64: bool) -> bytes:
    """As a writer that cannot seek makes it: sizes follow the content."""

    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: bytes) -> int:  # type: ignore[override]
            self.data += bytes(piece)
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=zip64) as file:
                file.write(content)
    return pipe.data


@pytest.mark.parametrize(
    "body",
    [
        tar(FILES),
        _pax(FILES, tarfile.GNU_FORMAT),
        _pax(FILES, tarfile.USTAR_FORMAT),
        gzip.compress(tar(FILES)[:5000]) + gzip.compress(tar(FILES)[5000:]),
        zstandard.compress(tar(FILES), 19),
        zstandard.compress(tar(FILES)[:5000]) + zstandard.compress(tar(FILES)[5000:]),
        zipped(FILES),
        zipped(FILES, zipfile.ZIP_STORED),
        _streamed_zip(FILES, zip64=False),
        _streamed_zip(FILES, zip64=True),
    ],
    ids="pax gnu ustar gzip-members zstd zstd-frames deflated stored streamed streamed-zip64".split(),
)
def test_every_writer_is_understood(body: bytes, tmp_path: Path) -> None:
    unpacked = _unpack(body, tmp_path)
    assert _contents(unpacked) == FILES
    assert unpacked.files["config.json"].size == 2
    assert {path.name for path in tmp_path.iterdir()} == {"files"}


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    unpacked = _unpack(tar(FILES), tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in unpacked.folder.rglob("*")}
    assert modes == {0o600, 0o700}


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(format_: int, tmp_path: Path) -> None:
    names = ["n" * 150, "/".join(["p" * 90] * 3), "gewächs-模型"]
    assert set(_unpack(_pax(dict.fromkeys(names, b"x"), format_), tmp_path).files) == set(names)


def test_folders_are_named_in_tar_and_zip(tmp_path: Path) -> None:
    body = tar({}, extra=[member("./", kind=tarfile.DIRTYPE), member("a/", kind=tarfile.DIRTYPE)])
    assert _unpack(body, tmp_path).files == {}
    (tmp_path / "zip").mkdir()
    assert set(_unpack(zipped({"a/": b"", "a/b": b"x"}), tmp_path / "zip").files) == {"a/b"}


def test_what_the_policy_drops_is_read_but_not_written(tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}

    def admit(name: str, head: bytes) -> bool:
        seen[name] = head
        return name == "config.json"

    unpacked = _unpack(tar(FILES), tmp_path, Policy(admit))
    assert set(_contents(unpacked)) == {"config.json"}
    assert unpacked.names == list(FILES)
    assert seen["sub/model.safetensors"][:512] == FILES["sub/model.safetensors"][:512]
    assert not (unpacked.folder / "sub").exists()


@pytest.mark.parametrize("pack", [tar, zipped])
def test_bytes_are_counted_before_they_are_written(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    with pytest.raises(PayloadTooLarge) as error:
        _unpack(pack({"a": bytes(5000), "b": bytes(6000)}), tmp_path, total=10_000)
    assert error.value.code == "MODEL_TOO_LARGE"
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.name != "spool") <= 10_000


def test_a_bomb_stops_at_its_ratio(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as error:
        _unpack(tar({"model.safetensors": bytes(60_000_000)}, "w:gz"), tmp_path)
    assert error.value.code == "ARCHIVE_RATIO_REFUSED"
    assert (tmp_path / "files" / "model.safetensors").stat().st_size <= 12_000_000


def test_a_filling_disk_is_noticed_while_writing(tmp_path: Path) -> None:
    limits = _limits(tmp_path, reserve=1 << 60)
    with pytest.raises(InsufficientStorage):
        unpack(io.BytesIO(zipped(FILES)), tmp_path, limits, KEEP_ALL)


def test_a_window_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    body = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(bytes(1 << 20))
    body += zstandard.ZstdCompressor(compression_params=parameters).compress(tar(FILES))
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = stream.compress(tar(FILES)) + stream.flush()
    with pytest.raises(BadRequest) as error:
        _unpack(body, tmp_path)
    assert error.value.code == "ARCHIVE_MALFORMED"


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "in").mkdir()
    target = Unpacked(tmp_path / "in", _limits(tmp_path), KEEP_ALL, lambda: 1)
    (tmp_path / "in" / "sub").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        target.add_file("sub/a", 1, iter([b"x"]))
    assert list(outside.iterdir()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 20_000), st.integers(0, 255), st.sampled_from(["tar", "gz", "zip", "zst"]))
def test_a_flipped_byte_never_surprises(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, kind: str
) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 20}
    whole = {"tar": tar(files), "gz": tar(files, "w:gz"), "zip": zipped(files), "zst": zstandard.compress(tar(files))}
    body = bytearray(whole[kind])
    body[at % len(body)] = value
    try:
        unpacked = _unpack(bytes(body), tmp_path_factory.mktemp("flip"))
    except (BadRequest, Invalid, PayloadTooLarge):
        return
    assert len(unpacked.files) <= 2


def test_what_is_written_counts_whatever_was_declared(tmp_path: Path) -> None:
    target = Unpacked(tmp_path, _limits(tmp_path, total=1000), KEEP_ALL, lambda: 1000)
    with pytest.raises(PayloadTooLarge):
        target.add_file("a", 10, iter([bytes(600)] * 3))


def test_a_zip_member_never_unpacks_beyond_its_declared_size(tmp_path: Path) -> None:
    body = bytearray(zipped({"model.safetensors": bytes(8_000_000)}))
    for magic, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = body.rindex(magic) + at
        body[start : start + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(BadRequest) as error:
        _unpack(bytes(body), tmp_path)
    assert error.value.code == "ARCHIVE_MALFORMED"
    assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= 1000
