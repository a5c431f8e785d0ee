"""The small fields that come with an upload, in the query or as parts of a form."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.errors import Invalid, invalid
from service.intake import strict_json
from service.specs import Metadata, Name

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


def name(value: str) -> str:
    """A name of 1 to 200 printable characters. Raises `Invalid`."""
    try:
        return _NAME.validate_python(value)
    except ValidationError as error:
        raise invalid(
            "/name", "name has 1 to 200 characters, none of them a control character", "NAME_INVALID"
        ) from error


def metadata(value: str) -> dict[str, str]:
    """At most 16 pairs of short strings, as a JSON object. Raises `Invalid`."""
    try:
        pairs: Any = strict_json.loads(value.encode("utf-8", "surrogatepass"))
        return _METADATA.validate_python(pairs, strict=True)
    except (ValidationError, strict_json.JsonRefused) as error:
        detail = "metadata is a JSON object of at most 16 pairs of strings of up to 256 characters"
        raise invalid("/metadata", detail, "METADATA_INVALID") from error


def unknown_part(allowed: str) -> Invalid:
    """A form has a part that means nothing here."""
    return Invalid(f"A part of the form is not known; parts are {allowed}.", code="PART_UNKNOWN")
