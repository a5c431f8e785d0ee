"""The catalog agrees with itself and with the language of specs."""

from typing import get_args

import pytest
import transformers

from service.catalog import FAMILIES, Family, family_of, has_tokenizer
from service.specs import CRITERIA_OF, ExportName, TaskName


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_an_entry_speaks_the_language_of_specs(family: Family) -> None:
    assert set(family.stock_structures) <= set(family.structures) <= set(CRITERIA_OF)
    assert set(family.structures).isdisjoint(family.reasons)
    assert set(family.one_size) <= set(family.stock_structures)
    assert set(family.exports) == set(get_args(ExportName))
    assert set(family.tasks) <= set(get_args(TaskName))
    assert set(family.architectures.values()) - {None} <= set(family.tasks)


def test_every_architecture_is_a_class_of_the_library_for_its_family() -> None:
    for family in FAMILIES.values():
        for architecture in family.architectures:
            assert getattr(transformers, architecture).config_class.model_type == family.model_type


def test_every_task_is_done_by_some_family() -> None:
    assert {task for family in FAMILIES.values() for task in family.tasks} == set(get_args(TaskName))


def test_a_family_is_found_by_its_whole_name() -> None:
    assert family_of("bert") is FAMILIES["bert"]
    for name in ("my-bert", "bert2", "ber"):
        unknown = family_of(name)
        assert (unknown.model_type, unknown.known, unknown.structures) == (name, False, ("weights",))


@pytest.mark.parametrize(
    ("names", "enough"),
    [
        ("tokenizer.json", True),
        ("vocab.txt tokenizer_config.json", True),
        ("vocab.json merges.txt", True),
        ("vocab.json source.spm target.spm", True),
        ("spiece.model", True),
        ("spm.model", True),
        ("sentencepiece.bpe.model", True),
        ("tokenizer.model", True),
        ("vocab.json", False),
        ("source.spm target.spm", False),
        ("merges.txt added_tokens.json special_tokens_map.json tokenizer_config.json", False),
        ("", False),
    ],
)
def test_what_can_turn_text_into_tokens(names: str, enough: bool) -> None:
    assert has_tokenizer(names.split()) == enough
