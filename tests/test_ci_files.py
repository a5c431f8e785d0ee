"""The files of `docs/ci`: they parse, and name commands, options and outputs that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service.test_one_to_one import commands

CI = Path(__file__).parents[1] / "docs" / "ci"
README = (CI / "README.md").read_text()
ACTION: dict[str, Any] = yaml.safe_load((CI / "action.yml").read_text())


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def scripts() -> dict[str, str]:
    """Everything in these files that a shell runs."""
    github, gitlab = (yaml.safe_load(block) for block in blocks("yaml"))
    assert github["jobs"]
    found = {"gate.sh": (CI / "gate.sh").read_text(), "gitlab": "\n".join(gitlab["model-gate"]["script"])}
    return found | {step["name"]: step["run"] for step in ACTION["runs"]["steps"] if "run" in step}


def called(script: str) -> list[list[str]]:
    """The words of every call of `secateur`."""
    lines = script.replace("\\\n", " ").splitlines()
    calls = [re.search(r"(?:^|\s)secateur (run|jobs|models|datasets) .*", line) for line in lines]
    found = [call[0] for call in calls if call and "#" not in call[0]]
    return [shlex.split(call.partition(">")[0].partition("||")[0])[1:] for call in found]


@pytest.mark.parametrize("name", sorted(scripts()))
def test_commands_have_these_options(name: str) -> None:
    known = commands()
    for words in called(scripts()[name]):
        command = known.get(words[0]) or known[" ".join(words[:2])]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_gates_all_call_it() -> None:
    assert {name for name, script in scripts().items() if called(script)} == {"gate.sh", "gitlab", "Prune and judge"}


def test_the_script_is_shown_as_it_is() -> None:
    assert (CI / "gate.sh").read_text() in blocks("sh")
    assert (CI / "gate.sh").stat().st_mode & 0o111


def test_the_action_uses_all_of_its_inputs_and_no_other() -> None:
    text = (CI / "action.yml").read_text()
    assert set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", text)) == ACTION["inputs"].keys()
    assert {"model", "dataset", "spec", "url", "api-key"} == {
        name for name, given in ACTION["inputs"].items() if given.get("required")
    }
    assert set(re.findall(r"inputs\.|secrets\.", "".join(scripts().values()))) == set(), (
        "values reach a shell as variables"
    )


def test_the_actions_outputs_come_from_a_step_that_sets_them() -> None:
    script = scripts()["Prune and judge"]
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.gate.outputs.{name} }}}}"
        assert f'"{name}="' in script
    shown = yaml.safe_load(blocks("yaml")[0])["jobs"]["gate"]["steps"][1]["with"]
    assert shown.keys() <= ACTION["inputs"].keys()


def test_every_exit_code_is_told() -> None:
    from service.commands import exits

    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    assert rows == codes - {exits.INTERRUPTED}
