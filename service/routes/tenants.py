"""The caller's own tenant: what it may use and what it uses. Limits are set on the command line alone.

No key reaches beyond its tenant, so none can read or change what another one may use.
"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.deps import Reader, SessionDep, SettingsDep
from service.problems import responses
from service.quotas import TenantLimits, Usage, limits_of, usage_of

router = APIRouter(prefix="/v1/tenant", tags=["operations"])


class TenantView(BaseModel):
    """A tenant."""

    object: Literal["tenant"] = "tenant"
    name: str
    limits: TenantLimits
    usage: Usage


@router.get("", summary="Show limits and usage", response_model=TenantView, responses=responses())
def get_tenant(principal: Reader, session: SessionDep, settings: SettingsDep) -> Any:
    """The limits in force for the key's tenant, and what it uses now."""
    limits, usage = limits_of(session, settings, principal.tenant), usage_of(session, principal.tenant)
    return TenantView(name=principal.tenant, limits=limits, usage=usage)
