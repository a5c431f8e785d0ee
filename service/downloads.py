"""What a client gets as a job's model: which artifacts, under which names."""

from collections.abc import Iterable

from service.tables import Artifact

NETWORK_DIRECTORIES = ("huggingface", "huggingface_custom", "network")
"""Folders that hold a Hugging Face directory, the best known form first."""


def job_archive(artifacts: Iterable[Artifact]) -> list[tuple[str, Artifact]]:
    """The files of a job's archive as (name in the archive, artifact), in the archive's order.

    The Hugging Face directory stands at the root; a second form of it and ONNX files keep their folders; the report is
    fetched on its own.
    """
    by_path = {artifact.path: artifact for artifact in artifacts}
    roots = {path.partition("/")[0] for path in by_path}
    main = next((name for name in NETWORK_DIRECTORIES if name in roots), None)
    named = []
    for path, artifact in by_path.items():
        folder, _, rest = path.partition("/")
        if folder == main:
            named.append((rest, artifact))
        elif folder in NETWORK_DIRECTORIES or folder == "onnx":
            named.append((path, artifact))
    return sorted(named, key=lambda pair: pair[0])
