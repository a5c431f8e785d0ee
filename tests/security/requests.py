"""Hostile requests, generated: job orders, manifests, chunks, webhooks, names and bodies that must be refused."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.testclient import TestClient

from tests.security.corpus import Hostile
from tests.service.samples import a_spec
from tests.uploads import bert_files, form, safetensors, tar, zipped

UNKNOWN_MODEL = "mdl_" + "0" * 26
TUS = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0", "Upload-Offset": "0"}


class Request(NamedTuple):
    """A request that must be refused. `{model}` and `{upload}` in its path are ids of a model that waits for files."""

    name: str
    status: int
    code: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


def ask(client: TestClient, request: Request, ids: Mapping[str, str]) -> Any:
    """Send a request; the answer."""
    path = request.path.format(**ids) if "{" in request.path else request.path
    headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    return client.request(request.method, path, content=request.body, headers=headers)


def as_json(method: str, path: str, body: Any, **headers: str) -> tuple[str, str, bytes, dict[str, str]]:
    """A request with a JSON body, bytes as they are; lone surrogates leave escaped."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return method, path, data, {"Content-Type": "application/json", **headers}


def _field(path: str, value: Any) -> dict[str, Any]:
    """A spec with one value changed; the path has a slash between names and numbers."""
    spec: Any = json.loads(json.dumps(a_spec()))
    *above, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = spec
    for part in above:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[last] = value
    return dict(spec)


SPEC_FIELDS: dict[str, tuple[str, Any]] = {
    "SQL in an id": ("model_id", "x'); DROP TABLE jobs; --"),
    "a shell in an id": ("model_id", "$(id)"),
    "a path as an id": ("model_id", "../../etc/passwd"),
    "a URL as an id": ("model_id", "http://169.254.169.254/latest"),
    "an id with a newline": ("model_id", UNKNOWN_MODEL + "\n"),
    "an id with a NUL": ("dataset_id", "ds_" + "0" * 25 + "\0"),
    "code as a criterion": ("pruning/cuts/0/criterion/kind", "__import__('os').system('id')"),
    "an import path as a criterion": ("pruning/cuts/0/criterion", "os.system"),
    "an unknown knob": ("pruning/cuts/0/criterion/command", "id"),
    "a key of objects": ("__class__", {"__init__": {}}),
    "a key of templates": ("{{7*7}}", 1),
    "an environment": ("env", {"LD_PRELOAD": "/tmp/x.so"}),
    "a path to write to": ("output_dir", "/etc"),
    "remote code": ("trust_remote_code", True),
    "a device with a path": ("device", "cuda:0;/dev/sda"),
    "an export by module": ("exports", ["huggingface", "os:system"]),
    "a name with escape sequences": ("name", "\x1b]0;x\x07"),
    "a name with a NUL": ("name", "a\0b"),
    "a name with a lone surrogate": ("name", "\ud800"),
    "a name of 10 000": ("name", "x" * 10_000),
    "a name that is an object": ("name", {"$gt": ""}),
    "metadata in depth": ("metadata", {"a": {"b": "c"}}),
    "metadata of 17": ("metadata", {str(number): "x" for number in range(17)}),
    "a seed of 2**70": ("seed", 2**70),
    "a negative seed": ("seed", -1),
    "a seed in quotes": ("seed", "0"),
    "a boolean priority": ("priority", True),
    "a time that never ends": ("timeout", 10**12),
    "a ratio beyond one": ("pruning/cuts/0/ratio", 1.5),
    "a negative ratio": ("pruning/cuts/0/ratio", -0.5),
    "a million epochs": ("finetuning", {"epochs": 10**6}),
    "a batch of 2**40": ("finetuning", {"epochs": 1, "batch_size": 2**40}),
    "a sequence of 2**31": ("benchmark/sequence_length", 2**31),
    "a thousand cuts": ("pruning/cuts", [a_spec()["pruning"]["cuts"][0]] * 1000),
    "a webhook on this machine": ("webhook_url", "https://127.0.0.1/"),
    "a webhook to a file": ("webhook_url", "file:///etc/passwd"),
}

RAW_SPECS: dict[str, bytes] = {
    "NaN": b'{"seed": NaN}',
    "infinity": b'{"seed": Infinity}',
    "infinity by overflow": b'{"seed": 1e999}',
    "a million digits": b'{"seed": ' + b"1" * 900_000 + b"}",
    "a name twice": b'{"version": 1, "version": 2}',
    "200 000 brackets": b"[" * 200_000,
    "200 000 braces": b'{"a":' * 200_000,
    "not UTF-8": b'{"name": "\xff"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "a lone surrogate": b'{"\\udfff": 1}',
    "a NUL": b'{"name": "\0"}',
    "cut off": b'{"name": "a',
    "nothing": b"",
    "XML": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
}

INTERNAL = {
    "in decimal": "https://2130706433/",
    "in hexadecimal": "https://0x7f000001/",
    "short": "https://127.1/",
    "in octal": "https://0177.0.0.1/",
    "as any": "https://0.0.0.0/",
    "by name": "https://localhost/",
    "in IPv6": "https://[::1]/",
    "mapped": "https://[::ffff:127.0.0.1]/",
    "through NAT64": "https://[64:ff9b::7f00:1]/",
    "through 6to4": "https://[2002:7f00:1::]/",
    "metadata": "https://169.254.169.254/latest/meta-data/",
    "metadata in IPv6": "https://[fd00:ec2::254]/",
    "private": "https://10.0.0.1/",
    "shared": "https://100.64.0.1/",
    "multicast": "https://224.0.0.1/",
    "as nothing": "https://0/",
    "as any in IPv6": "https://[::]/",
    "compatible": "https://[::127.0.0.1]/",
    "mapped in hexadecimal": "https://[::ffff:7f00:1]/",
    "through Teredo": "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "through NAT64 of one's own": "https://[64:ff9b:1::7f00:1]/",
    "of the link in IPv6": "https://[fe80::1]/",
    "of a site in IPv6": "https://[fec0::1]/",
    "metadata in decimal": "https://2852039166/",
    "metadata of another cloud": "https://192.0.0.192/",
    "for benchmarks": "https://198.18.0.1/",
    "to everybody": "https://255.255.255.255/",
}
BAD_URLS = {
    "Unicode digits": "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "credentials": "https://user:secret@example.com/",
    "a host in front": "https://example.com\\@127.0.0.1/",
    "another scheme": "gopher://127.0.0.1:6379/_FLUSHALL",
    "a line break": "https://example.com/\r\nX: y",
    "the port of mail": "https://example.com:25/",
    "an open bracket": "https://[::1",
    "a zone": "https://[fe80::1%25eth0]/",
    "dots of another script": "https://127\u30020\u30020\u30021/",
}

SOUND = {"path": "config.json", "size": 1, "sha256": "0" * 64}
FILES: dict[str, tuple[str, list[Any]]] = {
    "a parent": ("ARCHIVE_NAME_REFUSED", [{**SOUND, "path": "../../up"}]),
    "an absolute path": ("ARCHIVE_NAME_REFUSED", [{**SOUND, "path": "/etc/cron.d/x"}]),
    "a drive": ("ARCHIVE_NAME_REFUSED", [{**SOUND, "path": "c:/x"}]),
    "a line break": ("ARCHIVE_NAME_REFUSED", [{**SOUND, "path": "a\nb"}]),
    "writing from the right": ("ARCHIVE_NAME_REFUSED", [{**SOUND, "path": "\u202egnp"}]),
    "one name twice": ("ARCHIVE_DUPLICATE", [SOUND, {**SOUND, "path": "CONFIG.json"}]),
    "a pickle": ("PICKLE_REFUSED", [{**SOUND, "path": "optimizer.pt"}]),
    "code": ("REMOTE_CODE_REFUSED", [{**SOUND, "path": "modeling_x.py"}]),
    "a size of 2**70": ("INVALID_BODY", [{**SOUND, "size": 2**70}]),
    "a size below zero": ("INVALID_BODY", [{**SOUND, "size": -1}]),
    "a size that is no number": ("INVALID_BODY", [{**SOUND, "size": 1.5}]),
    "a digest that is a path": ("INVALID_BODY", [{**SOUND, "sha256": "../" + "0" * 61}]),
    "a URL to fetch": ("INVALID_BODY", [{**SOUND, "url": "http://127.0.0.1/"}]),
    "no file": ("INVALID_BODY", []),
    "10 001 files": ("ARCHIVE_TOO_MANY_ENTRIES", [{**SOUND, "path": str(number)} for number in range(10_001)]),
}

CHUNKS: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
    "more than was told": (413, "CHUNK_TOO_LARGE", b"x" * 5000, {}),
    "an offset behind the end": (409, "OFFSET_MISMATCH", b"x", {"Upload-Offset": "10"}),
    "a negative offset": (400, "HEADER_INVALID", b"x", {"Upload-Offset": "-1"}),
    "an offset of 2**70": (400, "HEADER_INVALID", b"x", {"Upload-Offset": str(2**70)}),
    "an offset in other digits": (400, "HEADER_INVALID", b"x", {"Upload-Offset": "\xb2"}),
    "another type": (415, "UNSUPPORTED_MEDIA_TYPE", b"x", {"Content-Type": "application/json"}),
    "another protocol": (412, "PRECONDITION_FAILED", b"x", {"Tus-Resumable": "0.2.0"}),
    "a weak checksum": (400, "CHECKSUM_UNSUPPORTED", b"x", {"Upload-Checksum": "md5 AAAA"}),
    "a checksum that is none": (400, "CHECKSUM_UNSUPPORTED", b"x", {"Upload-Checksum": "sha256 ???"}),
    "a checksum that lies": (
        460,
        "CHECKSUM_MISMATCH",
        b"x",
        {"Upload-Checksum": "sha256 " + base64.b64encode(bytes(32)).decode()},
    ),
}


def _named(path: bytes) -> dict[str, str]:
    return {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "1",
        "Upload-Metadata": f"path {base64.b64encode(path).decode()}",
    }


UNNAMED: dict[str, tuple[int, str, dict[str, str]]] = {
    "a path to the top": (422, "ARCHIVE_NAME_REFUSED", _named(b"../../etc/passwd")),
    "bytes that are no text": (400, "HEADER_INVALID", _named(b"\xff")),
    "no base64": (400, "HEADER_INVALID", {**_named(b""), "Upload-Metadata": "path %%%"}),
    "a length of 2**70": (400, "HEADER_INVALID", {**_named(b"config.json"), "Upload-Length": str(2**70)}),
    "a file that nobody told of": (422, "UPLOAD_UNKNOWN", _named(b"more.safetensors")),
}

DOWNLOADS = {
    "the parent": "/v1/models/{model}/files/../../../secateur.db",
    "the parent, encoded": "/v1/models/{model}/files/%2e%2e/%2e%2e/secateur.db",
    "the parent, with its slashes": "/v1/models/{model}/files/%2e%2e%2f%2e%2e%2fsecateur.db",
    "encoded twice": "/v1/models/{model}/files/%252e%252e%252fsecateur.db",
    "an absolute path": "/v1/models/{model}/files//etc/passwd",
    "backslashes": "/v1/models/{model}/files/..%5c..%5csecateur.db",
    "an artifact by path": "/v1/artifacts/..%2f..%2fsecateur.db/content",
    "a job by path": "/v1/jobs/%2e%2e/report",
    "overlong": "/v1/models/{model}/files/%c0%ae%c0%ae/secateur.db",
    "line breaks": "/v1/models/{model}/files/a%0d%0aSet-Cookie:%20x",
}


def _part(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    body, kind = form({name: content})
    return body, {"Content-Type": kind}


def _fields() -> Iterator[Request]:
    for name, (path, value) in SPEC_FIELDS.items():
        told = as_json("POST", "/v1/jobs", _field(path, value))
        if isinstance(value, str) and ("\0" in value or "\ud800" in value):
            yield Request(f"job: {name}", 400, "MALFORMED_JSON", *told)
        elif name == "a webhook on this machine":
            yield Request(f"job: {name}", 422, "WEBHOOK_URL_REFUSED", *told)
        else:
            yield Request(f"job: {name}", 422, "INVALID_SPEC", *told)
    for name, data in RAW_SPECS.items():
        yield Request(f"job: {name}", 400, "MALFORMED_JSON", *as_json("POST", "/v1/jobs", data))
    yield Request("job: 2 MiB", 413, "PAYLOAD_TOO_LARGE", *as_json("POST", "/v1/jobs", b" " * (2 << 20)))
    bomb = b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"
    kinds = {"Content-Type": "application/yaml"}
    yield Request("job: YAML", 415, "UNSUPPORTED_MEDIA_TYPE", "POST", "/v1/jobs", bomb, kinds)
    foreign = as_json("POST", "/v1/jobs", a_spec())
    yield Request("job: a model of nobody", 404, "NOT_FOUND", *foreign)
    long = as_json("POST", "/v1/jobs", a_spec(), **{"Idempotency-Key": "x" * 300})
    yield Request("job: a long key to repeat by", 400, "IDEMPOTENCY_KEY_INVALID", *long)


def _others() -> Iterator[Request]:
    endpoints = "/v1/webhook_endpoints"
    for name, url in INTERNAL.items():
        yield Request(f"webhook: {name}", 422, "WEBHOOK_URL_REFUSED", *as_json("POST", endpoints, {"url": url}))
    for name, url in BAD_URLS.items():
        yield Request(f"webhook: {name}", 422, "INVALID_BODY", *as_json("POST", endpoints, {"url": url}))
    for name, (code, files) in FILES.items():
        yield Request(f"manifest: {name}", 422, code, *as_json("POST", "/v1/models", {"files": files}))
    for name, (status, code, body, headers) in CHUNKS.items():
        yield Request(f"chunk: {name}", status, code, "PATCH", "/v1/uploads/{upload}", body, {**TUS, **headers})
    for name, (status, code, headers) in UNNAMED.items():
        yield Request(f"upload: {name}", status, code, "POST", "/v1/models/{model}/uploads", b"", headers)
    for name, path in DOWNLOADS.items():
        yield Request(f"download: {name}", 404, "NOT_FOUND", "GET", path)
    yield Request("complete: nothing has come", 409, "UPLOAD_INCOMPLETE", "POST", "/v1/models/{model}/complete")


REQUESTS = [*_fields(), *_others()]


def _zeros_in_zstd() -> bytes:
    import zstandard

    return zstandard.compress(tar({"model.safetensors": bytes(40_000_000)}))


def _zip64_lie() -> bytes:
    """A zip whose one entry says that it holds 2**60 bytes."""
    body = bytearray(zipped({"config.json": b"{}"}, zipfile.ZIP_STORED))
    at = body.rindex(b"PK\x01\x02")
    extra = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
    body[at + 20 : at + 28] = b"\xff" * 8
    body[at + 30 : at + 32] = struct.pack("<H", len(extra))
    end = body.rindex(b"PK\x05\x06")
    body[end:end] = extra
    end += len(extra)
    body[end + 12 : end + 16] = struct.pack("<L", end - at)
    return bytes(body)


def _bzip2() -> bytes:
    target = io.BytesIO()
    target.write(tar(bert_files(), "w:bz2"))
    return target.getvalue()


CASES_OF_SAFETENSORS = {
    "a header that is all spaces": struct.pack("<Q", 1 << 20) + b" " * (1 << 20),
    "half a gigabyte in words": safetensors({"a": (1,)}).replace(b"[1]", b"[9]"),
}
MORE_MODELS = [
    Hostile("zstd of zeros", "ARCHIVE_RATIO_REFUSED", lambda _: _zeros_in_zstd()),
    Hostile("zip64 that lies", "ARCHIVE_MALFORMED", lambda _: _zip64_lie()),
    Hostile("bzip2", "ARCHIVE_UNKNOWN", lambda _: _bzip2()),
    Hostile("xz", "ARCHIVE_UNKNOWN", lambda _: tar(bert_files(), "w:xz")),
    Hostile("7z", "ARCHIVE_UNKNOWN", lambda _: b"7z\xbc\xaf\x27\x1c" + bytes(600)),
    Hostile("an ONNX graph as the upload", "ARCHIVE_UNKNOWN", lambda _: b"\x08\x07\x12\x04evil:" + bytes(600)),
    Hostile("a zip in a zip", "CONFIG_MISSING", lambda _: zipped({"model.zip": zipped(bert_files())})),
    *(
        Hostile(name, "SAFETENSORS_REFUSED", lambda _, data=data: tar(bert_files() | {"model.safetensors": data}))  # type: ignore[misc]
        for name, data in CASES_OF_SAFETENSORS.items()
    ),
]
DATA: dict[str, tuple[str, bytes]] = {
    "Parquet": ("ROW_INVALID", b"PAR1" + bytes(100) + b"PAR1"),
    "Arrow": ("ROW_INVALID", b"ARROW1\0\0" + bytes(100)),
    "HDF5": ("ROW_INVALID", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "a gzip": ("ROW_INVALID", tar({"a": b"b"}, "w:gz")),
    "numpy": ("ROW_INVALID", b"\x93NUMPY\x01\x00" + bytes(100)),
    "XML": ("ROW_INVALID", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
    "a formula": ("ROW_INVALID", b"=cmd|'/c calc'!A0\n"),
    "a script": ("ROW_INVALID", b"#!/bin/sh\nid\n"),
}
