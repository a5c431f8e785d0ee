"""What can be done with which family, read from the registries: the answer that models and capabilities give."""

from typing import get_args

from service.catalog import Family, family_of
from service.schemas import FamilyView, StructureSupport, Supported
from service.specs import CRITERIA_OF, QUALITY_METRICS
from service.specs.cuts import Pattern


def supported(family: Family, *, uniform: bool = True) -> Supported:
    """What a job can do with a network of a family; `uniform` is whether a stock config expresses its sizes."""
    scoring = {kind for structure in family.structures for kind in CRITERIA_OF[structure]}
    return Supported(
        tasks=list(family.tasks or QUALITY_METRICS),
        structures=list(family.structures),
        criteria=sorted(scoring if family.criteria is None else scoring & family.criteria),
        exports=[name for name in family.exports if uniform or name != "huggingface"],
    )


def family_view(family: Family) -> FamilyView:
    """A row of the table of families."""
    return FamilyView(
        name=family.model_type,
        architectures=list(family.architectures),
        tasks=list(family.tasks),
        structures=list(family.structures),
        stock_structures=list(family.stock_structures),
        stacks=list(family.stacks),
        reasons=dict(family.reasons),
        exports=list(family.exports),
    )


def structure_support() -> list[StructureSupport]:
    """The table of structures: what scores them, and the patterns of single weights."""
    return [
        StructureSupport(
            name=name, criteria=sorted(criteria), patterns=list(get_args(Pattern)) if name == "weights" else []
        )
        for name, criteria in CRITERIA_OF.items()
    ]


def other_families() -> Supported:
    """What can be done with a model whose family is not in the catalog."""
    return supported(family_of("other"))
