"""Manifests: what a model will consist of, before its files are sent one by one."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import FieldError, Invalid
from service.intake.models import POLICY
from service.intake.names import Claims
from service.problems import invalid_body
from service.specs import Metadata, Name

_MAX_SIZE = 1 << 60


class ManifestFile(BaseModel):
    """One file of a Hugging Face directory."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: Annotated[str, Field(min_length=1, description="relative to the model's folder, with /")]
    size: Annotated[int, Field(ge=0, le=_MAX_SIZE, description="bytes")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="lower-case hexadecimal")]


class Manifest(BaseModel):
    """The files of a model that is sent one by one, each as an upload that can be resumed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name = "model"
    files: Annotated[list[ManifestFile], Field(min_length=1)]
    metadata: Metadata = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read_manifest(given: Any) -> Manifest:
    """The manifest in a request's JSON, with the names of its files in their one strict form.

    Raises `Invalid`, for names that an archive may not have either too.
    """
    try:
        manifest = Manifest.model_validate(given)
    except ValidationError as error:
        raise invalid_body(error, given) from error
    claims = Claims()
    files = [_checked(claims, number, file) for number, file in enumerate(manifest.files)]
    return manifest.model_copy(update={"files": files})


def _checked(claims: Claims, number: int, file: ManifestFile) -> ManifestFile:
    """By its name, an upload can be refused before a byte of it is sent; by its content it is when it is here."""
    try:
        if file.path.endswith("/"):
            raise Invalid("A file's name does not end in a slash.", code="ARCHIVE_NAME_REFUSED")
        name = claims.add_file(file.path)
        POLICY.admit(name, b"")
    except Invalid as error:
        field = FieldError(f"/files/{number}/path", error.detail)
        raise Invalid(error.detail, code=error.code, errors=(field,)) from error
    return file.model_copy(update={"path": name})
