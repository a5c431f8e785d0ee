"""Storage in a bucket of an object store that speaks S3; needs the extra `s3`.

The keys are boto3's affair: it reads them, as usual, from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or
the role of the machine. None is part of a URL, a log line or an error.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from service.errors import InsufficientStorage, Unavailable
from service.storage.disposition import disposition
from service.storage.keys import StorageMissing, UnusableStorage, checked
from service.storage.object_reader import ObjectReader

try:
    from boto3.s3.transfer import TransferConfig, create_transfer_manager
    from boto3.session import Session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError
except ModuleNotFoundError as missing:
    raise UnusableStorage("s3:// storage needs boto3: pip install 'secateur[s3]'.") from missing

log = logging.getLogger(__name__)

PRESIGNED_SECONDS = 900
"""How long a presigned address may be used to begin a download."""

_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 5.0, 30.0, 3
_PART_BYTES = 16 << 20
_DELETED_AT_ONCE = 1000
_TRANSFER = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_FULL = frozenset({"507", "QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})
_PARAMETERS = frozenset({"endpoint", "region"})

for _name in ("boto3", "botocore", "s3transfer"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # below, they write signed headers


class S3Storage:
    """Objects of one bucket below one prefix. An object appears when its last part is confirmed, or never."""

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, region: str | None = None
    ) -> None:
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            max_pool_connections=32,
            signature_version="s3v4",
            # Names of buckets as hosts need a DNS that most stores of one's own do not have.
            s3={"addressing_style": "path" if endpoint else "auto"},
        )
        self._client: Any = Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)

    @classmethod
    def from_url(cls, url: str) -> "S3Storage":
        """The storage of `s3://bucket/prefix?endpoint=https://…&region=…`. Raises `UnusableStorage`."""
        parts = urlsplit(url)
        given = parse_qs(parts.query)
        if "@" in parts.netloc:
            raise UnusableStorage("an s3:// URL holds no keys; they are read from the AWS_* variables")
        if not parts.netloc or given.keys() - _PARAMETERS or parts.fragment:
            raise UnusableStorage(
                "S3 storage is s3://bucket/prefix?endpoint=…&region=…; all but the bucket is optional"
            )
        prefix = parts.path.strip("/")
        options = {name: values[-1] for name, values in given.items()}
        try:
            return cls(parts.netloc, checked(prefix) if prefix else "", **options)
        except (ValueError, BotoCoreError) as error:
            raise UnusableStorage("the prefix, endpoint, region or profile of the S3 storage is not one") from error

    def _name(self, key: str) -> str:
        return self._root + checked(key)

    def _of(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._name(key)}

    def put(self, key: str, source: Path) -> None:
        """Send a file, from 16 MiB on in parts, four side by side; then remove `source`.

        Each request carries a checksum that the store compares. When one fails for good the parts are dropped.
        """
        place, size = self._of(key), source.stat().st_size
        with _told("put"), create_transfer_manager(self._client, _TRANSFER) as transfers:
            transfers.upload(str(source), place["Bucket"], place["Key"]).result()
        if self.size(key) != size:
            self.delete_prefix(key)
            raise _away()
        source.unlink()

    def open(self, key: str) -> BinaryIO:
        """A seekable reader that asks for bytes where it stands and goes on after a broken connection."""
        place = self._of(key)
        with _told("open"):
            head = self._client.head_object(**place)

        def read_from(start: int) -> Any:
            return self._client.get_object(**place, Range=f"bytes={start}-", IfMatch=head["ETag"])["Body"]

        return ObjectReader(_guarded(read_from), head["ContentLength"], (BotoCoreError, ClientError), _away).buffered()

    def link(self, key: str, target: Path) -> None:
        """A copy on this machine: an object has no second name."""
        place = self._of(key)
        with _told("download"), create_transfer_manager(self._client, _TRANSFER) as transfers:
            transfers.download(place["Bucket"], place["Key"], str(target)).result()

    def size(self, key: str) -> int:
        """Bytes of an object."""
        with _told("size"):
            return int(self._client.head_object(**self._of(key))["ContentLength"])

    def delete_prefix(self, prefix: str) -> None:
        """Remove the objects below a prefix, or the one of that name, with unfinished uploads of them."""
        name = self._name(prefix.rstrip("/"))
        with _told("delete"):
            names = [name, *self._below(name)]
            for start in range(0, len(names), _DELETED_AT_ONCE):
                self._delete(names[start : start + _DELETED_AT_ONCE])
            self._abort_uploads(name)

    def _delete(self, names: "list[str]") -> None:
        wanted = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        refused = self._client.delete_objects(Bucket=self._bucket, Delete=wanted).get("Errors")
        if refused:
            log.error("The object store kept %d objects: %s", len(refused), refused[0].get("Code"))
            raise _away()

    def _below(self, name: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{name}/")
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"]

    def _abort_uploads(self, name: str) -> None:
        """Drop the parts that a killed process had sent; stores that cannot list them expire them by a rule."""
        try:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=name)
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                if upload["Key"] == name or upload["Key"].startswith(f"{name}/"):
                    place = {"Bucket": self._bucket, "Key": upload["Key"]}
                    self._client.abort_multipart_upload(**place, UploadId=upload["UploadId"])
        except ClientError as error:
            log.info("Unfinished uploads could not be looked for: %s", _code(error))

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below a prefix, in the order of their bytes."""
        with _told("list"):
            for name in self._below(self._name(prefix.rstrip("/"))):
                yield name.removeprefix(self._root)

    def prefixes(self, root: str, parts: int) -> Iterator[str]:
        """What so many first parts of the keys are."""
        for prefix, _ in groupby(self.list(root), key=lambda key: "/".join(key.split("/")[:parts])):
            yield prefix

    def free_bytes(self) -> int | None:
        """None: a bucket has no bound."""
        return None

    def presigned_url(self, key: str, *, filename: str, media_type: str) -> str | None:
        """An address that gives this object to whoever has it, for 15 minutes."""
        shown = {"ResponseContentDisposition": disposition(filename), "ResponseContentType": media_type}
        with _told("presign"):
            url: str = self._client.generate_presigned_url(
                "get_object", Params={**self._of(key), **shown}, ExpiresIn=PRESIGNED_SECONDS
            )
        return url


def _guarded(read_from: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same, for whom an object that has gone is missing."""

    def guarded(start: int) -> Any:
        try:
            return read_from(start)
        except ClientError as error:
            if _code(error) in _MISSING:
                raise StorageMissing from None
            raise

    return guarded


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The library's errors as ours; its words stay out of answers, and its log lines are a code and no more."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _MISSING:
            raise StorageMissing from None
        log.error("The object store refused %s: %s", what, code)
        if code in _FULL:
            raise InsufficientStorage("The service's storage is full; nothing was kept.") from None
        raise _away() from None
    except (BotoCoreError, RetriesExceededError) as error:
        log.error("The object store failed at %s: %s", what, type(error).__name__)
        raise _away() from None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _away() -> Unavailable:
    detail = "The service's object store does not answer as it should; try again."
    return Unavailable(detail, code="STORAGE_AWAY", headers={"Retry-After": "5"})
