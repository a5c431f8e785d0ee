"""Large bodies under load: uploads side by side with reads of the status beside them, and a resumed download."""

import hashlib
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.load_site import LoadSite, load, tell
from tests.benchmarks.open_loop import Run
from tests.benchmarks.upload_bench import Growth, push, size_of, verify
from tests.cutting import big_model

AT_ONCE = 4
READS = 50
"""Reads of the status a second while uploads run: enough for percentiles, too few to take the cores from them."""
LONGEST_SECONDS = 300
_PIECE = 1 << 20


def uploads(site: LoadSite, arguments: Any) -> None:
    """Four models at a time, each in chunks; the status of jobs is read meanwhile."""
    needed = (3 * AT_ONCE + 1) * arguments.megabytes * 10**6
    if shutil.disk_usage(site.folder).free < needed:
        sys.exit(f"{needed:,} bytes of disk are needed below {site.folder}")
    ids = site.queued(100)
    folders = [big_model(site.folder / f"big-{number}", arguments.megabytes, 4) for number in range(AT_ONCE)]
    growth, begun = Growth(site.live), time.monotonic()
    seconds = min(LONGEST_SECONDS, max(5, AT_ONCE * arguments.megabytes // 150))
    reading = Run(site.live.url, READS, site.reads(ids, READS * seconds))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [pool.submit(push, site.live.url, site.live.api_key, folder, lambda *_: None) for folder in folders]
        models = [one.result() for one in sent]
    took = time.monotonic() - begun
    growth.note()
    for folder, model in zip(folders, models, strict=True):
        verify(folder, model)
    size = sum(map(size_of, folders))
    told = f"{size / took / 1e6:.0f} MB/s in sum, hashed and checked; target 100 MB/s"
    print(f"{AT_ONCE} uploads, {size:,} bytes in {took:.1f} s: {told}; {load()}")
    print(f"growth of the API {growth.most / 2**20:.1f} MiB at its peak; target 64 MiB", flush=True)
    tell("GET /v1/jobs/{id} meanwhile", reading.measured(), 100)
    remove(site, folders, [model["id"] for model in models])


def downloads(site: LoadSite, arguments: Any) -> None:
    """The archive of a model at once, then broken off half-way and resumed, each hashed; beside it a bare copy."""
    folder = big_model(site.folder / "down", arguments.megabytes, 1)
    model = push(site.live.url, site.live.api_key, folder, lambda *_: None)
    growth = Growth(site.live)
    path = f"/v1/models/{model['id']}/archive"
    head = site.live.client.head(path).headers
    etag, size = head["etag"], int(head["content-length"])
    for name, ends in (("at once", (size,)), ("resumed half-way", (size // 2, size))):
        begun, digest, start = time.monotonic(), hashlib.sha256(), 0
        for end in ends:
            start = fetch(site, path, etag, start, end, digest)
        took = time.monotonic() - begun
        assert etag == f'"{digest.hexdigest()}"', "the download is not what is stored"
        speed = f"{size / took / 1e6:.0f} MB/s, hashed; target 200 MB/s"
        print(f"download {name}: {size:,} bytes in {took:.2f} s: {speed}; {load()}", flush=True)
    print(f"copied and hashed without a service: {copy_speed(folder, site.folder / 'copy') / 1e6:.0f} MB/s")
    growth.note()
    print(f"growth of the API {growth.most / 2**20:.1f} MiB at its peak; target 64 MiB", flush=True)
    remove(site, [folder], [model["id"]])


def fetch(site: LoadSite, path: str, etag: str, start: int, end: int, digest: Any) -> int:
    """Read on from `start` and leave at `end`, wherever the answer would end; returns `end`."""
    headers = {"Range": f"bytes={start}-", "If-Range": etag} if start else {}
    with site.live.client.stream("GET", path, headers=headers, timeout=600) as answer:
        assert answer.status_code == (206 if start else 200)
        for piece in answer.iter_raw(_PIECE):
            taken = piece[: end - start]
            digest.update(taken)
            start += len(taken)
            if start == end:
                break
    return start


def copy_speed(folder: Path, target: Path) -> float:
    """Bytes a second of the largest file of a folder, copied piece by piece and hashed."""
    source = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    begun, digest = time.monotonic(), hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(_PIECE):
            digest.update(piece)
            writing.write(piece)
    target.unlink()
    return source.stat().st_size / (time.monotonic() - begun)


def remove(site: LoadSite, folders: list[Path], models: list[str]) -> None:
    """Give the disk back."""
    for folder in folders:
        shutil.rmtree(folder)
    for model in models:
        site.live.client.delete(f"/v1/models/{model}").raise_for_status()
