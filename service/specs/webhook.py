"""Where webhooks go and what they tell of, as far as the text of an order says it."""

import re
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

WebhookEvent: TypeAlias = Literal["job.started", "job.succeeded", "job.rejected", "job.failed", "job.cancelled"]

_TEXT = re.compile(r"[^\x00-\x20\x7f-\U0010ffff\"<>\\^`{|}]+")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


def _well_formed(value: str) -> str:
    """The URL itself. What its host stands for is asked of the network, at the door and at every send."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise _fault("give an absolute URL as RFC 3986 has it") from error
    if parts.scheme not in ("https", "http") or not _TEXT.fullmatch(value):
        raise _fault("give an https URL in ASCII; encode other characters")
    if "@" in parts.netloc:
        raise _fault("a URL that carries credentials is not taken; the signature tells who sends")
    if not _HOST_AND_PORT.fullmatch(parts.netloc) or "#" in value:
        raise _fault("give a host, perhaps a port, a path and a query, and no fragment")
    if port is not None and port not in (80, 443) and port < 1024:  # there live mail, SSH and the like
        raise _fault("the port must be 443, 80 or from 1024 on")
    return value


def _fault(advice: str) -> PydanticCustomError:
    return PydanticCustomError("webhook_url", "{advice}", {"advice": advice})


WebhookUrl: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=2048), AfterValidator(_well_formed)]
"""https, a host that is public, no credentials; http and private hosts where the service is set to allow them."""
