"""A seed stands for one plan."""

from tests.nemesis import plan


def test_a_seed_stands_for_one_plan() -> None:
    assert plan.digest(1, (0.5, 4)) == plan.digest(1, (0.5, 4)) != plan.digest(2, (0.5, 4))
