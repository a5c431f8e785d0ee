"""Every error that a client can see, each with its HTTP status and a stable code.

    SecateurError
    ├── BadRequest             400   malformed body, header or archive
    ├── Unauthorized           401   no key, or one that is unknown, revoked or expired
    ├── Forbidden              403   the key lacks the scope, or the tenant the quota
    ├── NotFound               404   unknown id, or another tenant's
    ├── RequestTimeout         408   it did not come in time
    ├── Conflict               409   the resource's state does not allow it
    ├── Gone                   410   it was here; its files were kept as long as was asked
    ├── PreconditionFailed     412   a version of a protocol that is not spoken here
    ├── PayloadTooLarge        413
    ├── UnsupportedMediaType   415
    ├── RangeNotSatisfiable    416
    ├── Misdirected            421   for a host that this service is not
    ├── Invalid                422   understood, but cannot work; `errors` point at the fields
    ├── Locked                 423   another request writes to it right now
    ├── TooManyRequests        429   come back later: too fast, or a queue is full
    ├── HeadersTooLarge        431
    ├── ChecksumMismatch       460   a chunk is not what its checksum says (tus)
    ├── InternalError          500
    ├── Unavailable            503   something we lean on is away; try again later
    └── InsufficientStorage    507

Imports nothing of ours: any layer may raise these.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One fault in a body: a JSON Pointer (RFC 6901) and what to do about it."""

    pointer: str
    detail: str


class SecateurError(Exception):
    """An error with a status, a stable code and advice; becomes one RFC 9457 problem document.

    `detail` is shown to the client: it must never repeat a submitted value, a path of the server or a secret.
    """

    status = 500
    code = "INTERNAL_ERROR"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: tuple[FieldError, ...] = (),
        headers: dict[str, str] | None = None,
        extra: dict[str, str | int] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.errors = errors
        self.headers = headers or {}
        self.extra = extra or {}


class BadRequest(SecateurError):
    status, code, title = 400, "BAD_REQUEST", "Bad request"


class Unauthorized(SecateurError):
    status, code, title = 401, "UNAUTHORIZED", "Authentication needed"


class Forbidden(SecateurError):
    status, code, title = 403, "FORBIDDEN", "Not allowed"


class NotFound(SecateurError):
    status, code, title = 404, "NOT_FOUND", "Not found"


class RequestTimeout(SecateurError):
    status, code, title = 408, "REQUEST_TIMEOUT", "Request timeout"


class Conflict(SecateurError):
    status, code, title = 409, "CONFLICT", "Conflict with the current state"


class Gone(SecateurError):
    status, code, title = 410, "GONE", "Gone"


class PreconditionFailed(SecateurError):
    status, code, title = 412, "PRECONDITION_FAILED", "Precondition failed"


class PayloadTooLarge(SecateurError):
    status, code, title = 413, "PAYLOAD_TOO_LARGE", "Too large"


class UnsupportedMediaType(SecateurError):
    status, code, title = 415, "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type"


class RangeNotSatisfiable(SecateurError):
    status, code, title = 416, "RANGE_NOT_SATISFIABLE", "Range not satisfiable"


class Misdirected(SecateurError):
    status, code, title = 421, "HOST_UNKNOWN", "Misdirected request"


class Invalid(SecateurError):
    status, code, title = 422, "INVALID", "Cannot work as asked"


class Locked(SecateurError):
    status, code, title = 423, "LOCKED", "Locked"


class TooManyRequests(SecateurError):
    status, code, title = 429, "TOO_MANY_REQUESTS", "Too many requests"


class HeadersTooLarge(SecateurError):
    status, code, title = 431, "HEADERS_TOO_LARGE", "Headers too large"


class ChecksumMismatch(SecateurError):
    status, code, title = 460, "CHECKSUM_MISMATCH", "Checksum mismatch"


class InternalError(SecateurError):
    status, code, title = 500, "INTERNAL_ERROR", "Internal error"


class Unavailable(SecateurError):
    status, code, title = 503, "UNAVAILABLE", "Temporarily unavailable"


class InsufficientStorage(SecateurError):
    status, code, title = 507, "NO_SPACE", "Not enough storage"


def invalid(pointer: str, detail: str, code: str = "INVALID") -> Invalid:
    """An `Invalid` about one field: the pointer and the fix."""
    return Invalid(detail, code=code, errors=(FieldError(pointer, detail),))
