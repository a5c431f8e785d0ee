"""The kin of a model."""

from fastapi import APIRouter

from service.deps import Reader, SessionDep
from service.lineage import Lineage, lineage_of
from service.model_view import find_model
from service.problems import responses

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "/{model_id}/lineage",
    response_model=Lineage,
    responses=responses(404),
    summary="Show what a model was made from and what was made of it",
)
def get_lineage(model_id: str, principal: Reader, session: SessionDep) -> Lineage:
    """All ancestors up to the upload, and all descendants, deleted ones too, with the jobs that made them.

    Models beside these, made of an ancestor, are not among them: ask for the lineage of the root.
    """
    return lineage_of(session, find_model(session, principal.tenant, model_id))
