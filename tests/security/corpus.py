"""Hostile uploads, generated: nothing binary lies in the tree. Each has the code that must refuse it."""

import gzip
import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.uploads import Files, bert_files, bert_shapes, member, safetensors, tar, with_header, zipped


class Hostile(NamedTuple):
    """A model upload that must be refused."""

    name: str
    code: str
    make: Callable[[Path], bytes]
    """Given a path that no loader may ever create, the body."""


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def _with(**files: bytes) -> bytes:
    return tar(bert_files() | files)


def _pickle(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker), protocol=4)


def _torch_save(marker: Path) -> bytes:
    return zipped({"archive/data.pkl": _pickle(marker), "archive/version": b"3"}, zipfile.ZIP_STORED)


def _torchscript(marker: Path) -> bytes:
    files = {"m/data.pkl": _pickle(marker), "m/code/__torch__.py": b"class M(Module):\n  pass\n"}
    return zipped({**files, "m/constants.pkl": b"\x80\x02)."}, zipfile.ZIP_STORED)


def _beside(name: str, content: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    """A good model with one more file, or with one of its files replaced."""
    return lambda marker: tar(bert_files() | {name: content(marker)})


PICKLES = [
    *(
        Hostile(f"pickle as {name}", "PICKLE_REFUSED", _beside(name, _pickle))
        for name in "pytorch_model.bin model.pt x.CKPT sub/training_args.bin model.safetensors vocab.txt".split()
    ),
    Hostile("torch.save as weights.dat", "PICKLE_REFUSED", lambda m: _with(**{"weights.dat": _torch_save(m)})),
    Hostile("torch.save as the upload", "PICKLE_REFUSED", _torch_save),
    Hostile("an empty .bin", "PICKLE_REFUSED", lambda _: _with(**{"pytorch_model.bin": b""})),
    *(
        Hostile(f"TorchScript as {name}", "TORCHSCRIPT_REFUSED", _beside(name, _torchscript))
        for name in "model.pt pytorch_model.bin model.zip model.safetensors".split()
    ),
    Hostile("TorchScript as the upload", "TORCHSCRIPT_REFUSED", _torchscript),
    Hostile("exported graph", "GRAPH_REFUSED", lambda _: _with(**{"model.pt2": b"PK"})),
    Hostile("HDF5 by name", "HDF5_REFUSED", lambda _: _with(**{"tf_model.h5": b""})),
    Hostile("HDF5 by content", "HDF5_REFUSED", lambda _: _with(**{"weights": b"\x89HDF\r\n\x1a\n"})),
    Hostile("GGUF by content", "GGUF_REFUSED", lambda _: _with(**{"vocab.txt": b"GGUF\3\0\0\0"})),
    Hostile("Keras", "KERAS_REFUSED", lambda _: _with(**{"model.keras": b""})),
    Hostile(
        "adapter",
        "ADAPTER_REFUSED",
        lambda _: _with(**{"adapter_config.json": b'{"base_model_name_or_path": "/etc"}'}),
    ),
    Hostile("code", "REMOTE_CODE_REFUSED", lambda _: _with(**{"modeling.py": b"import os"})),
]


def _header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    return with_header(json.dumps(entries).encode(), data)


def _entry(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _twice() -> bytes:
    entry = json.dumps(_entry([1], [0, 4])).encode()
    return with_header(b'{"a":' + entry + b',"a":' + entry + b"}", bytes(4))


def _many() -> bytes:
    entry = json.dumps(_entry([0], [0, 0])).encode()
    return with_header(b"{" + b",".join(b'"%x":' % number + entry for number in range(100_001)) + b"}")


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "header cut off": lambda: struct.pack("<Q", 100) + b"{}",
    "header of 2^63 bytes": lambda: struct.pack("<Q", 2**63) + b"{}",
    "header of 8 MiB and more": lambda: with_header(b"{" + b" " * (8 << 20) + b"}"),
    "not JSON": lambda: with_header(b"{'a': 1}"),
    "not UTF-8": lambda: with_header(b'{"\xff": 1}'),
    "an array": lambda: with_header(b"[]"),
    "deep nesting": lambda: with_header(b"[" * 200_000),
    "huge integer": lambda: with_header(b'{"a":' + b"1" * 1_000_000 + b"}"),
    "NaN": lambda: with_header(b'{"a": NaN}'),
    "a name twice": _twice,
    "100 001 tensors": _many,
    "5 000 dimensions": lambda: _header({"a": _entry([1] * 5000, [0, 4])}, bytes(4)),
    "a negative dimension": lambda: _header({"a": _entry([-1, -1], [0, 4])}, bytes(4)),
    "a shape that overflows": lambda: _header({"a": _entry([2**62, 4], [0, 0])}),
    "a boolean dimension": lambda: _header({"a": _entry([True], [0, 4])}, bytes(4)),
    "bytes that do not fit the shape": lambda: _header({"a": _entry([2], [0, 4])}, bytes(4)),
    "overlap": lambda: _header({"a": _entry([2], [0, 8]), "b": _entry([2], [4, 12])}, bytes(12)),
    "gap": lambda: _header({"a": _entry([1], [0, 4]), "b": _entry([1], [8, 12])}, bytes(12)),
    "tail": lambda: _header({"a": _entry([1], [0, 4])}, bytes(8)),
    "cut data": lambda: _header({"a": _entry([2], [0, 8])}, bytes(4)),
    "backwards": lambda: _header({"a": _entry([0], [4, 0])}, bytes(4)),
    "unknown type": lambda: _header({"a": _entry([1], [0, 4], "F4")}, bytes(4)),
    "a name with a path": lambda: _header({"../../etc/passwd\0": _entry([1], [0, 4])}, bytes(4)),
    "a name of 300": lambda: _header({"a" * 300: _entry([1], [0, 4])}, bytes(4)),
    "metadata that is no text": lambda: _header({"__metadata__": {"format": {"a": 1}}}),
    "another framework's": lambda: safetensors({"a": (1,)}, metadata={"format": "flax"}),
    "zip behind": lambda: safetensors(bert_shapes()) + zipped({"a": b"b"}),
    "zip in front": lambda: zipped({"a": b"b"}) + safetensors(bert_shapes()),
}


def _config(**changes: Any) -> Callable[[Path], bytes]:
    return lambda _: tar({**bert_files(), "config.json": json.dumps(_changed(changes)).encode()})


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(bert_files()["config.json"]), **changes}


def _raw_config(data: bytes) -> Callable[[Path], bytes]:
    return lambda _: tar({**bert_files(), "config.json": data})


CONFIGS = [
    Hostile("auto_map", "REMOTE_CODE_REFUSED", _config(auto_map={"AutoConfig": "conf.Evil"})),
    Hostile("no family", "FAMILY_UNSUPPORTED", _config(model_type=None)),
    Hostile("family that is a path", "FAMILY_UNSUPPORTED", _config(model_type="../bert")),
    Hostile("code of an unknown family", "REMOTE_CODE_REFUSED", _config(model_type="x", auto_map={"A": "b.C"})),
    Hostile(
        "code within a config",
        "REMOTE_CODE_REFUSED",
        _config(model_type="x", text_config={"parts": [{"custom_pipelines": {"p": {"impl": "b.C"}}}]}),
    ),
    Hostile("quantised unknown family", "QUANTIZATION_UNSUPPORTED", _config(model_type="x", quantization_config={})),
    Hostile("family that is a list", "FAMILY_UNSUPPORTED", _config(model_type=["bert"])),
    Hostile("another head", "ARCHITECTURE_UNSUPPORTED", _config(architectures=["BertForMultipleChoice"])),
    Hostile("quantised", "QUANTIZATION_UNSUPPORTED", _config(quantization_config={"quant_method": "x"})),
    Hostile("1e8 labels", "CONFIG_INVALID", _config(num_labels=100_000_000)),
    Hostile("1e9 words", "CONFIG_INVALID", _config(vocab_size=1_000_000_000)),
    Hostile("1e7 layers", "CONFIG_INVALID", _config(num_hidden_layers=10_000_000)),
    Hostile("no layers", "CONFIG_INVALID", _config(num_hidden_layers=0)),
    Hostile("float layers", "CONFIG_INVALID", _config(num_hidden_layers=2.0)),
    Hostile("boolean layers", "CONFIG_INVALID", _config(num_hidden_layers=True)),
    Hostile("heads that do not divide", "CONFIG_INVALID", _config(num_attention_heads=3)),
    Hostile("a decoder", "CONFIG_INVALID", _config(is_decoder=True)),
    Hostile("an activation of its own", "CONFIG_INVALID", _config(hidden_act="os.system")),
    Hostile("labels with a hole", "CONFIG_INVALID", _config(id2label={"0": "a", "2": "b"})),
    Hostile("padding outside the vocabulary", "CONFIG_INVALID", _config(pad_token_id=20)),
    Hostile("more layers than weights", "CONFIG_MISMATCH", _config(num_hidden_layers=3)),
    Hostile("fewer layers than weights", "CONFIG_MISMATCH", _config(num_hidden_layers=1)),
    Hostile("a wider FFN than weights", "CONFIG_MISMATCH", _config(intermediate_size=32)),
    Hostile("a larger vocabulary than weights", "CONFIG_MISMATCH", _config(vocab_size=21)),
    Hostile("more labels than weights", "CONFIG_MISMATCH", _config(id2label={"0": "a", "1": "b", "2": "c"})),
    Hostile("another family's weights", "CONFIG_INVALID", _config(model_type="distilbert", architectures=None)),
    Hostile("deep JSON", "CONFIG_INVALID", _raw_config(b"[" * 200_000)),
    Hostile("a key twice", "CONFIG_INVALID", _raw_config(b'{"model_type": "bert", "model_type": "x"}')),
    Hostile("NaN", "CONFIG_INVALID", _raw_config(b'{"model_type": "bert", "x": NaN}')),
    Hostile("infinity by overflow", "CONFIG_INVALID", _raw_config(b'{"model_type": "bert", "x": 1e999}')),
    Hostile("a million digits", "CONFIG_INVALID", _raw_config(b'{"x": ' + b"1" * 1_000_000 + b"}")),
    Hostile("a lone surrogate", "CONFIG_INVALID", _raw_config(b'{"x": "\\ud800"}')),
    Hostile("2 MiB of JSON", "CONFIG_INVALID", _raw_config(b'{"x": "' + b"a" * (2 << 20) + b'"}')),
    Hostile("no object", "CONFIG_INVALID", _raw_config(b"[]")),
    Hostile("no config", "CONFIG_MISSING", lambda _: tar({"a.txt": b""})),
    Hostile("two folders", "CONFIG_MISSING", lambda _: tar({"a/config.json": b"{}", "b/config.json": b"{}"})),
    Hostile("no weights", "WEIGHTS_MISSING", lambda _: tar({"config.json": bert_files()["config.json"]})),
    Hostile(
        "a tokenizer with code",
        "REMOTE_CODE_REFUSED",
        lambda _: _with(**{"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["tok.Evil", null]}}'}),
    ),
    Hostile(
        "generation with code",
        "REMOTE_CODE_REFUSED",
        lambda _: _with(**{"generation_config.json": b'{"auto_map": {"x": "gen.Evil"}}'}),
    ),
    Hostile("a vocabulary of lists", "TOKENIZER_REFUSED", lambda _: _with(**{"vocab.json": b'{"a": [1]}'})),
    Hostile("merges that are no text", "TOKENIZER_REFUSED", lambda _: _with(**{"merges.txt": b"\xff\xfe"})),
    Hostile("sentencepiece that is none", "TOKENIZER_REFUSED", lambda _: _with(**{"spiece.model": b"#!/bin/sh"})),
    Hostile(
        "modules of another library",
        "REMOTE_CODE_REFUSED",
        lambda _: _with(**{"modules.json": b'[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]'}),
    ),
]


def _sharded(shard: str) -> Callable[[Path], bytes]:
    weight_map = dict.fromkeys(bert_shapes(), shard)
    return _beside("model.safetensors.index.json", lambda _: json.dumps({"weight_map": weight_map}).encode())


INDEXES = [
    Hostile(f"a shard at {shard}", "INDEX_REFUSED", _sharded(shard))
    for shard in "../other/model.safetensors /etc/passwd ./model.safetensors missing.safetensors ..".split()
]


def _raw_name(name: bytes) -> bytes:
    """A tar whose second member has this name, byte for byte, which the standard library might clean."""
    header = bytearray(member("x", size=0).tobuf(tarfile.USTAR_FORMAT))
    header[:100] = name.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    first = tar({"config.json": b"{}"}).rstrip(b"\0")
    return first + bytes(-len(first) % 512) + bytes(header) + bytes(1024)


BAD_NAMES = {
    "parent": "../up",
    "absolute": "/abs",
    "parent inside": "a/../../b",
    "drive": "C:\\x",
    "drive with slashes": "c:/x",
    "backslash": "a\\..\\..\\b",
    "current": "a/./b",
    "empty part": "a//b",
    "control": "new\nline",
    "right to left": "\u202egnp.exe",
    "zero width": "con\u200bfig.json",
    "long part": "x" * 256,
    "long name": "/".join(["x" * 100] * 12),
    "deep": "/".join("d" * 17),
    "dots": "..",
}


def _one_file(name: str, pack: Callable[[Files], bytes]) -> Callable[[Path], bytes]:
    return lambda _: pack({name: b"x"})


def _nul_in_a_zip(_: Path) -> bytes:
    return zipped(bert_files() | {"up_/../../up": b"x"}).replace(b"up_/../../up", b"up\0/../../up")


def _nul_in_a_tar() -> bytes:
    info = member("x", size=0)
    info.pax_headers = {"path": "up\0/../../up"}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return target.getvalue()


PACKS: dict[str, Callable[[Files], bytes]] = {"tar": tar, "zip": zipped}
NAMES = [
    *(
        Hostile(f"{what} in a {kind}", "ARCHIVE_NAME_REFUSED", _one_file(name, pack))
        for what, name in BAD_NAMES.items()
        for kind, pack in PACKS.items()
    ),
    Hostile("not UTF-8", "ARCHIVE_NAME_REFUSED", lambda _: _raw_name(b"\xff\xfe")),
    Hostile("NUL in a tar", "ARCHIVE_NAME_REFUSED", lambda _: _nul_in_a_tar()),
    Hostile("NUL in a zip", "ARCHIVE_NAME_REFUSED", _nul_in_a_zip),
    Hostile("duplicate", "ARCHIVE_DUPLICATE", lambda _: tar(bert_files(), extra=[member("config.json")])),
    Hostile("duplicate by case", "ARCHIVE_DUPLICATE", lambda _: _with(**{"CONFIG.json": b""})),
    Hostile("duplicate by form", "ARCHIVE_DUPLICATE", lambda _: _with(**{"\u00e9": b"", "e\u0301": b""})),
    Hostile("file and folder", "ARCHIVE_DUPLICATE", lambda _: _with(**{"a": b"", "a/b": b""})),
    Hostile("folder and file", "ARCHIVE_DUPLICATE", lambda _: _with(**{"a/b": b"", "A": b""})),
]


def _special(kind: bytes) -> Callable[[Path], bytes]:
    return lambda _: tar(bert_files(), extra=[member("config2.json", kind=kind, target="/etc/passwd")])


def _zip_link(_: Path) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("config.json")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return target.getvalue()


def _overlapping(_: Path) -> bytes:
    """Two entries of one zip that share the same packed bytes."""
    body = bytearray(zipped({"config.json": b"{}" * 100}))
    directory = body.rindex(b"PK\x01\x02")
    end = body.rindex(b"PK\x05\x06")
    entry = bytes(body[directory:end])
    second = entry.replace(b"config.json", b"cOnfig2json")
    made = body[:directory] + entry + second + body[end:]
    at = made.rindex(b"PK\x05\x06")
    made[at + 8 : at + 16] = struct.pack("<2HL", 2, 2, 2 * len(entry))
    made = made.replace(b"cOnfig2json", b"config.json")
    return bytes(made)


def _zip_lie(field: int, value: int) -> Callable[[Path], bytes]:
    """A zip whose directory lies about 4 bytes at `field` of its entry."""

    def make(_: Path) -> bytes:
        body = bytearray(zipped({"config.json": b"{}" * 100}))
        at = body.rindex(b"PK\x01\x02") + field
        body[at : at + 4] = struct.pack("<L", value)
        return bytes(body)

    return make


def _encrypted(_: Path) -> bytes:
    body = bytearray(zipped({"config.json": b"{}"}))
    for magic, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        body[body.rindex(magic) + at] |= 1
    return bytes(body)


def _sparse_pax(_: Path) -> bytes:
    info = member("model.safetensors", size=0)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return target.getvalue()


def _zeros(_: Path) -> bytes:
    return tar({"model.safetensors": bytes(40_000_000)}, "w:gz")


def _many_entries(pack: Callable[[Files], bytes]) -> Callable[[Path], bytes]:
    return lambda _: pack({f"f{number}": b"" for number in range(10_001)})


ARCHIVES = [
    *(
        Hostile(f"tar with {what}", "ARCHIVE_ENTRY_REFUSED", _special(kind))
        for what, kind in {
            "a symbolic link": tarfile.SYMTYPE,
            "a hard link": tarfile.LNKTYPE,
            "a FIFO": tarfile.FIFOTYPE,
            "a character device": tarfile.CHRTYPE,
            "a block device": tarfile.BLKTYPE,
            "a contiguous file": tarfile.CONTTYPE,
            "a sparse file": tarfile.GNUTYPE_SPARSE,
        }.items()
    ),
    Hostile("sparse by pax", "ARCHIVE_ENTRY_REFUSED", _sparse_pax),
    Hostile("zip with a symbolic link", "ARCHIVE_ENTRY_REFUSED", _zip_link),
    Hostile("overlapping zip", "ARCHIVE_OVERLAP", _overlapping),
    Hostile("encrypted zip", "ARCHIVE_ENCRYPTED", _encrypted),
    Hostile("zip that lies about its size", "ARCHIVE_MALFORMED", _zip_lie(24, 10)),
    Hostile("zip that lies about its packed size", "ARCHIVE_MALFORMED", _zip_lie(20, 5)),
    Hostile("zip that lies about its checksum", "ARCHIVE_MALFORMED", _zip_lie(16, 1)),
    Hostile("zip whose member lies outside", "ARCHIVE_TRUNCATED", _zip_lie(42, 1_000_000)),
    Hostile("zip with LZMA", "ARCHIVE_METHOD_REFUSED", lambda _: zipped({"config.json": b"{}"}, zipfile.ZIP_LZMA)),
    Hostile("zip behind other bytes", "ARCHIVE_UNKNOWN", lambda _: b"#!/bin/sh\n" + zipped({"config.json": b"{}"})),
    Hostile("zip with bytes behind", "ARCHIVE_MALFORMED", lambda _: zipped({"config.json": b"{}"}) + b"tail"),
    Hostile("zip cut off", "ARCHIVE_MALFORMED", lambda _: zipped(bert_files())[:500]),
    Hostile("tar cut off", "ARCHIVE_TRUNCATED", lambda _: tar(bert_files())[:3000]),
    Hostile("tar.gz cut off", "ARCHIVE_TRUNCATED", lambda _: tar(bert_files(), "w:gz")[:900]),
    Hostile("broken gzip", "ARCHIVE_MALFORMED", lambda _: tar(bert_files(), "w:gz")[:12] + b"\xff" * 600),
    Hostile("tar with bytes behind", "ARCHIVE_MALFORMED", lambda _: tar(bert_files()) + b"tail"),
    Hostile("tar with a bad checksum", "ARCHIVE_MALFORMED", lambda _: tar(bert_files()).replace(b"config", b"donfig")),
    Hostile("gzip of something else", "ARCHIVE_UNKNOWN", lambda _: gzip.compress(b"#!/bin/sh")),
    Hostile("gzip in gzip", "ARCHIVE_UNKNOWN", lambda _: gzip.compress(tar(bert_files(), "w:gz"))),
    Hostile("zstd of nothing known", "ARCHIVE_MALFORMED", lambda _: b"\x28\xb5\x2f\xfd" + b"\xff" * 600),
    Hostile("gzip of zeros", "ARCHIVE_RATIO_REFUSED", _zeros),
    Hostile("zip of zeros", "ARCHIVE_RATIO_REFUSED", lambda _: zipped({"model.safetensors": bytes(40_000_000)})),
    Hostile("10 001 files in a tar", "ARCHIVE_TOO_MANY_ENTRIES", _many_entries(tar)),
    Hostile("10 001 files in a zip", "ARCHIVE_TOO_MANY_ENTRIES", _many_entries(zipped)),
    Hostile("nothing", "ARCHIVE_UNKNOWN", lambda _: b""),
]
