"""Versions of what we lean on below which a hole is known: the service does not start on one of them."""

import re
from collections.abc import Callable
from importlib import metadata

FLOORS = {
    "celery": ((5, 2, 2), "CVE-2021-23727: code from the result backend"),
    "h11": ((0, 16, 0), "CVE-2025-43859: requests smuggled in chunked bodies"),
    "jinja2": ((3, 1, 6), "CVE-2025-27516: a way out of the sandbox of templates"),
    "onnx": ((1, 21, 0), "CVE-2026-27489, CVE-2026-34446, CVE-2026-34447: files read by the names in a model"),
    "protobuf": ((6, 31, 1), "CVE-2025-4565: endless recursion in a message"),
    "python-multipart": ((0, 0, 27), "CVE-2026-40347, CVE-2026-42561: forms that take for ever"),
    "redis": ((4, 5, 5), "CVE-2023-28859: answers to another's request"),
    "sentencepiece": ((0, 2, 1), "CVE-2026-1260: memory overwritten by a tokenizer"),
    "starlette": ((1, 3, 1), "CVE-2026-48710, CVE-2026-54282, CVE-2026-54283: bad Host, path and form limits"),
    "torch": ((2, 10, 0), "CVE-2025-32434, CVE-2026-24747: code and memory corruption from weights"),
    "transformers": ((5, 3, 0), "CVE-2026-4372, CVE-2026-5241: code named in a config.json"),
    "urllib3": ((2, 6, 0), "CVE-2025-66418, CVE-2025-66471: small answers that unpack without end"),
}
"""By package: the first version without the hole, and the hole. What is not installed cannot harm."""


class VulnerablePackage(Exception):
    """An installed package has a known hole; the text names it, what was found and what is needed."""


def check(version_of: Callable[[str], str] = metadata.version) -> None:
    """Raises `VulnerablePackage` about all installed packages below their floor."""
    found = []
    for package, (floor, hole) in FLOORS.items():
        try:
            version = version_of(package)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(version) < floor:
            needed = ".".join(map(str, floor))
            found.append(f"{package} {version} is installed, at least {needed} is needed ({hole})")
    if found:
        raise VulnerablePackage("; ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: (2, 13, 0) of `2.13.0+cpu`, padded so that 1.21 is 1.21.0."""
    release = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)", version)
    numbers = tuple(map(int, release[1].split("."))) if release else ()
    return (*numbers, 0, 0, 0)[: max(3, len(numbers))]
