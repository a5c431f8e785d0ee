"""The judge: all rules over a history and the state that it left. Pure: the same evidence gives the same verdict."""

from collections.abc import Iterable

from tests.nemesis.evidence import Evidence, Rule, Violation
from tests.nemesis.history import Entry
from tests.nemesis.rules import acknowledged, answers, attempts, order, stored, webhooks
from tests.nemesis.state import State

RULES: tuple[Rule, ...] = (
    *answers.RULES,
    *acknowledged.RULES,
    *order.RULES,
    *attempts.RULES,
    *stored.RULES,
    *webhooks.RULES,
)


def name_of(rule: Rule) -> str:
    """A rule's name, as it stands in reports."""
    return str(getattr(rule, "__name__", rule)).replace("_", " ")


def judge(entries: Iterable[Entry], state: State) -> list[Violation]:
    """What contradicts a promise, in the order of the rules."""
    evidence = Evidence(entries, state)
    return [Violation(name_of(rule), detail) for rule in RULES for detail in rule(evidence)]
