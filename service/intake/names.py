"""Names of archive members: one strict form, and everything else refused."""

import re
import unicodedata

from service.errors import Invalid

MAX_PART_BYTES = 255
MAX_NAME_BYTES = 1024
MAX_DEPTH = 16
_DRIVE = re.compile(r"[A-Za-z]:")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories of control, format (bidi overrides among them), surrogate and private characters."""


def shown(name: str) -> str:
    """A member's name that is safe to show: printable ASCII, not long."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def decoded(raw: bytes) -> str:
    """A name as text. Raises `Invalid` when it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(raw.decode("latin-1"), "is not UTF-8") from error


def member_name(name: str) -> str:
    """The NFC form of a relative POSIX path, without a leading `./` and a trailing `/`; "" for the root itself.

    Raises `Invalid`, naming the member.
    """
    normal = unicodedata.normalize("NFC", name)
    while normal.startswith("./"):
        normal = normal[2:]
    normal = normal.removesuffix("/")
    if normal in ("", ".") and name:
        return ""
    if fault := _fault(normal):
        raise _refused(name, fault)
    return normal


def _fault(name: str) -> str | None:
    parts = name.split("/")
    if any(unicodedata.category(character) in _UNSEEN for character in name):
        return "has control or invisible characters"
    if name.startswith("/") or _DRIVE.match(name):
        return "is absolute"
    if "\\" in name:
        return "has a backslash"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, . or .."
    if len(parts) > MAX_DEPTH:
        return f"is more than {MAX_DEPTH} folders deep"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return "is too long"
    return None


def _refused(name: str, fault: str) -> Invalid:
    return Invalid(f"The archive's member {shown(name)} {fault}.", code="ARCHIVE_NAME_REFUSED")
