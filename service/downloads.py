"""What a client gets as a job's model: which artifacts, under which names."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

NETWORK_DIRECTORIES = ("huggingface", "huggingface_custom", "network")
"""Folders that hold a Hugging Face directory, the best known form first."""

MANIFEST = "manifest.json"
"""The artifact that lists all others with their digests; see `workers.provenance`."""

ARCHIVED_MANIFEST = "secateur_manifest.json"
"""Its name at the root of a job's archive, among the files of a Hugging Face directory."""


class Named(Protocol):
    """An artifact as far as it matters here: the client, which knows no tables, imports this module too."""

    @property
    def path(self) -> str:
        """Its path among the artifacts of its job."""


Artifact = TypeVar("Artifact", bound=Named)


def job_archive(artifacts: Iterable[Artifact]) -> list[tuple[str, Artifact]]:
    """The files of a job's archive as (name in the archive, artifact), in the archive's order.

    The Hugging Face directory stands at the root, and the manifest beside it; a second form of the directory and ONNX
    files keep their folders; the report is fetched on its own.
    """
    by_path = {artifact.path: artifact for artifact in artifacts}
    roots = {path.partition("/")[0] for path in by_path}
    main = next((name for name in NETWORK_DIRECTORIES if name in roots), None)
    named = []
    for path, artifact in by_path.items():
        folder, _, rest = path.partition("/")
        if path == MANIFEST:
            named.append((ARCHIVED_MANIFEST, artifact))
        elif folder == main:
            named.append((rest, artifact))
        elif folder in NETWORK_DIRECTORIES or folder == "onnx":
            named.append((path, artifact))
    return sorted(named, key=lambda pair: pair[0])
