"""What every part of a spec is made of: strict, frozen models and bounded texts."""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError


def _printable(value: Any) -> Any:
    if isinstance(value, str) and any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise PydanticCustomError("text", "control characters and lone surrogates are not allowed")
    return value


Name: TypeAlias = Annotated[
    str, BeforeValidator(_printable), StringConstraints(min_length=1, max_length=200, strip_whitespace=True)
]
ShortText: TypeAlias = Annotated[str, BeforeValidator(_printable), StringConstraints(max_length=256)]
Metadata: TypeAlias = Annotated[dict[ShortText, ShortText], Field(max_length=16)]
Identifier: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z]+_[0-9A-Z]{26}$")]

ExpiresAfter: TypeAlias = Annotated[
    int | None,
    Field(ge=60, le=10 * 366 * 86400, description="seconds from a job's end until what it made is removed"),
]


class Part(BaseModel):
    """Base of every part of a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
