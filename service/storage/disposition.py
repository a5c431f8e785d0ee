"""Names of downloads, for answers of ours and of an object store."""

import re
from urllib.parse import quote


def disposition(filename: str) -> str:
    """A Content-Disposition that no name can break out of (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)[:150]
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename[:150], safe='', errors='replace')}"
