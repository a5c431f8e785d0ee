"""How what the service holds gets to a disk: whole, verified byte for byte and file by file, or not at all."""

import json
from pathlib import Path

from service import errors
from service.client_calls import RETRIES, Answer, Call, Flow, Pause, Unreachable, _get, _send
from service.client_files import Check, CorruptDownload, PartialFile, Progress, check_files, unpack
from service.downloads import ARCHIVED_MANIFEST

PAUSE = 0.25
"""Seconds after the first failure; twice as many after each further one that brought no byte."""


def pull_model(model_id: str, out: Path, *, verify: bool = True, progress: Progress | None = None) -> Flow[list[Path]]:
    """Download a model's archive, verify it and unpack it into `out`; returns the files.

    With `verify` every file is also compared with what the service tells of the model. A difference raises
    `CorruptDownload`, and nothing of the archive is left in `out`.
    """
    check = None
    if verify:
        model = yield from _get(f"/v1/models/{model_id}")
        listed = {file["path"]: file["sha256"] for file in model["files"]}

        def check(folder: Path, names: list[str]) -> None:
            check_files(folder, names, listed)

    return (yield from _pull(f"/v1/models/{model_id}/archive", out, check, progress))


def pull_job(job_id: str, out: Path, *, verify: bool = True, progress: Progress | None = None) -> Flow[list[Path]]:
    """Download what a job made, verify it and unpack it into `out`; returns the files.

    With `verify` every file is also compared with the manifest that comes with them. A difference, or no manifest,
    raises `CorruptDownload`, and nothing of the archive is left in `out`.
    """
    return (yield from _pull(f"/v1/jobs/{job_id}/model", out, check_by_manifest if verify else None, progress))


def check_by_manifest(folder: Path, names: list[str]) -> None:
    """Compare the files `names` of an unpacked job with the manifest among them. Raises `CorruptDownload`."""
    if ARCHIVED_MANIFEST not in names:
        raise CorruptDownload(f"The archive has no {ARCHIVED_MANIFEST} to verify it by; it can be had unverified.")
    try:
        files = json.loads((folder / ARCHIVED_MANIFEST).read_bytes())["files"]
        listed = {file["archive_path"]: file["sha256"] for file in files if file["archive_path"] is not None}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDownload(f"The archive's {ARCHIVED_MANIFEST} cannot be read.") from error
    check_files(folder, [name for name in names if name != ARCHIVED_MANIFEST], listed)


def download_artifact(artifact_id: str, target: Path, *, progress: Progress | None = None) -> Flow[Path]:
    """Download one file of a job to `target` and verify it."""
    return (yield from _download(f"/v1/artifacts/{artifact_id}/content", target, progress))


def _pull(path: str, out: Path, check: Check | None, progress: Progress | None) -> Flow[list[Path]]:
    out.mkdir(parents=True, exist_ok=True)
    archive = yield from _download(path, out / ".download.tar", progress)
    try:
        return unpack(archive, out, check)
    finally:
        archive.unlink()


def _download(path: str, target: Path, progress: Progress | None) -> Flow[Path]:
    """Bytes of `path` into `target`: a broken download goes on where it stopped, also in a later process.

    It is given up after `RETRIES` failures in a row that brought no byte. Raises `CorruptDownload` when the bytes are
    not those that the service announced.
    """
    head = yield from _announced(path)
    sha256 = head.headers["etag"].strip('"')
    part = PartialFile(target, sha256, int(head.headers["content-length"]), progress)
    failures = 0
    while not part.complete:
        reached = part.offset
        try:
            headers = {"Range": f"bytes={reached}-", "If-Range": f'"{sha256}"'} if reached else {}
            yield Call("GET", path, headers=headers, sink=part.accept)
            if not part.complete:
                raise Unreachable("The connection ended before the download did.")
        except (Unreachable, errors.Unavailable):
            failures = 1 if part.offset > reached else failures + 1
            if failures > RETRIES:
                raise
            yield Pause(PAUSE * 2 ** (failures - 1))
    return part.finish()


def _announced(path: str) -> Flow[Answer]:
    try:
        return (yield from _send(Call("HEAD", path)))
    except errors.SecateurError:  # an answer to HEAD has no words: they are asked for
        yield from _send(Call("GET", path, headers={"Range": "bytes=0-0"}))
        raise
