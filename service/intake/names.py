"""Names of an upload's members: one strict form, each given out once, and everything else refused."""

import re
import unicodedata

from service.errors import Invalid
from service.intake.limits import MAX_ENTRIES

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
    return Invalid(f"The upload's member {shown(name)} {fault}.", code="ARCHIVE_NAME_REFUSED")


class Claims:
    """The names of one upload's members, counted and given out once each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Those of files, in the order in which they came."""
        self._kinds: dict[str, str] = {}
        self._entries = 0

    def add_folder(self, raw_name: str) -> None:
        """A folder may come as often as it likes."""
        name = self._counted(raw_name)
        if name:
            self._claim(name, "folder")

    def add_file(self, raw_name: str) -> str:
        """The strict form of a file's name. Raises `Invalid` when it is taken, or is no name."""
        name = self._counted(raw_name)
        if not name:
            raise _refused(raw_name, "names no file")
        self._claim(name, "file")
        self.names.append(name)
        return name

    def _counted(self, raw_name: str) -> str:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Invalid(f"An upload has at most {MAX_ENTRIES} entries.", code="ARCHIVE_TOO_MANY_ENTRIES")
        return member_name(raw_name)

    def _claim(self, name: str, kind: str) -> None:
        """Two members may not share a name, even in another case: on other file systems one would hide the other."""
        folded = name.casefold()
        parents = [folded[:at] for at, character in enumerate(folded) if character == "/"]
        if any(self._kinds.setdefault(parent, "folder") != "folder" for parent in parents):
            raise _duplicate(name)
        known = self._kinds.get(folded)
        if known and not known == kind == "folder":
            raise _duplicate(name)
        self._kinds[folded] = kind


def _duplicate(name: str) -> Invalid:
    return Invalid(f"The upload has {shown(name)} twice, apart from case.", code="ARCHIVE_DUPLICATE")
