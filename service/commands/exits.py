"""Exit codes of `secateur`, and which error gives which."""

from service.client import CorruptDownload, Unreachable, UnusableFolder
from service.errors import SecateurError

OK, USAGE, FAILED, REJECTED, CANCELLED, UNREACHABLE = 0, 2, 3, 4, 5, 6
INTERRUPTED = 130

_OF_STATUS = {"failed": FAILED, "rejected": REJECTED, "cancelled": CANCELLED}

EXPECTED = (SecateurError, Unreachable, CorruptDownload, UnusableFolder)
"""Errors that are told in one line, without a traceback."""


def of_job(status: str) -> int:
    """The exit code of a command that followed a job to its end."""
    return _OF_STATUS.get(status, OK)


def of_error(error: Exception) -> int:
    """The exit code of a command that an expected error ended."""
    if isinstance(error, Unreachable):
        return UNREACHABLE
    if isinstance(error, UnusableFolder):
        return USAGE
    if isinstance(error, SecateurError):
        if error.status < 500:
            return USAGE
        return UNREACHABLE if error.status in (502, 503, 504) else FAILED
    return FAILED
