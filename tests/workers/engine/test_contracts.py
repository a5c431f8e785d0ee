"""The registries, the specs and the catalog name the same things."""

from typing import get_args

from service import catalog
from service.specs import CRITERIA_OF, ExportName, StructureName, TaskName
from workers.engine.criteria import CRITERIA
from workers.engine.exporters import EXPORTERS
from workers.engine.families import FAMILIES
from workers.engine.modeling_secateur import CLASSES, PATTERNS
from workers.engine.structures import STRUCTURES
from workers.engine.tasks import TASKS


def test_registries_agree_with_the_spec_and_the_catalog() -> None:
    assert set(STRUCTURES) == set(get_args(StructureName)) == set(CRITERIA_OF)
    assert set(CRITERIA) == set().union(*CRITERIA_OF.values())
    assert set(EXPORTERS) == set(get_args(ExportName))
    assert set(TASKS) == set(get_args(TaskName))
    assert set(FAMILIES) == set(catalog.FAMILIES) == set(PATTERNS) == set(CLASSES)
    for family in catalog.FAMILIES.values():
        assert set(family.structures) <= set(STRUCTURES) and set(family.exports) <= set(EXPORTERS)
