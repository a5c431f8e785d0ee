"""Model cards: their code loads the model, their figures are the result's, nothing submitted is obeyed."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.intake.content import admit
from service.specs import TaskName
from tests.workers.engine import test_streamed as streamed
from tests.workers.engine.test_compress import TAYLOR, run, spec_of
from tests.workers.engine.test_reporting import measurement
from tests.workers.engine.tiny import tiny_network
from workers.engine.card import AUTO_CLASSES, plain, render, write_cards
from workers.engine.reporting import Record
from workers.engine.tasks import TASKS

STRUCTURE = {"layers": 2, "hidden_size": 8, "attention_heads": [2, 2], "ffn_width": [4, 4], "vocabulary": 9}


def front_of(card: str) -> dict[str, Any]:
    """The YAML at the head of a card."""
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def code_of(card: str) -> list[str]:
    """The blocks of Python in a card."""
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def execute(blocks: list[str], home: Path) -> str:
    """Run code in one fresh process that knows nothing of ours; returns what it printed."""
    environment = {"PATH": os.defpath, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", "\n".join(blocks)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_record(task: str = "text-classification", **changes: Any) -> Record:
    """A job with a verdict of each kind."""
    configuration = {
        "name": "smaller",
        "model_id": "mdl_1",
        "task": task,
        "seed": 7,
        "metadata": {},
        "exports": ["huggingface"],
        "baseline": None,
        "finetuning": None,
    }
    goal = {"metric": "accuracy", "max_drop": 0.05, "min_value": None}
    result = {
        "verdict": [
            {"metric": "accuracy", "goal": goal, "measured": 0.04, "passed": True},
            {"metric": "latency", "goal": {"metric": "latency", "min_speedup": 9.0}, "measured": None, "passed": False},
        ],
        "passed": False,
        "before": measurement(1.0, [12] * 3, [1536] * 3),
        "after": measurement(0.5, [6, 4], [777, 888]),
        "model": {"architecture": "BertForSequenceClassification"},
        "engine": {"device": "cpu", "versions": {"torch": "2.13.0"}},
    }
    cuts = [{"round": 1, "structure": "ffn_neurons", "criterion": "taylor", "removed": 2943, "of": 4608}]
    return Record({**configuration, **changes}, result, {}, cuts, {"encoder": [0, 2]})


def test_the_code_on_a_card_loads_the_model(tmp_path: Path) -> None:
    cut = {"structure": "ffn_neurons", "ratio": 0.5, "criterion": TAYLOR}
    spec = spec_of(
        pruning={"cuts": [cut]},
        exports=["huggingface", "huggingface_custom", "onnx"],
        metadata={"base_model": "some-one/tiny.bert"},
        acceptance=[{"metric": "parameters", "max_ratio": 0.99}],
        benchmark=None,
    )
    result, _ = run(tmp_path, spec)
    out = tmp_path / "out"
    stock, custom = ((out / name / "README.md").read_text() for name in ("huggingface", "huggingface_custom"))
    shutil.copytree(out / "onnx", out / "huggingface" / "onnx")
    assert front_of(stock) == {
        "base_model": "some-one/tiny.bert",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["secateur", "pruned", "ffn-neurons"],
    }
    assert "trust_remote_code=True" in custom and "trust_remote_code" not in stock
    (load, onnx), (trusted, _) = code_of(stock), code_of(custom)
    count = "print(sum(parameter.numel() for parameter in model.parameters()))"
    here = [block.replace("path/to/this/folder", str(out / "huggingface")) for block in (load, onnx)]
    there = trusted.replace("path/to/this/folder", str(out / "huggingface_custom"))
    printed = execute([here[0], count, here[1], "print(outputs[0].shape)", there, count], tmp_path)
    assert printed.splitlines() == [str(result["after"]["parameters"]), "(1, 2)", str(result["after"]["parameters"])]
    assert "Accepted" in stock and "Not fine-tuned" in stock and "95 % interval" in stock


def test_a_card_of_a_job_from_file_to_file_tells_less(tmp_path: Path) -> None:
    tiny_network("bert").save_pretrained(tmp_path / "in" / "model")
    streamed.run(tmp_path, streamed.spec_of())
    card = (tmp_path / "out" / "huggingface" / "README.md").read_text()
    assert "the quality of neither model was measured" in card and "Latency was not measured" in card
    assert "## What the zeros mean" in card and "50.0 %" in card
    assert not (tmp_path / "out" / "compressed" / "README.md").exists()


def test_the_figures_are_those_of_the_result(tmp_path: Path) -> None:
    card = render(a_record(), tmp_path)
    assert "| accuracy | 0.8800 [0.7900, 0.9000] | 0.8400 [0.7900, 0.9000] | -0.0400 |" in card
    assert "| Parameters | 22.7 M | 11.3 M | -50.0% |" in card
    assert "| Latency, ONNX Runtime, 8 \u00d7 128 tokens | 160.00 ms | 80.00 ms | 2.00\u00d7 as fast |" in card
    assert "| attention heads | 12 in each of 3 layers | 6, 4 |" in card
    assert "| 1 | ffn neurons | taylor | 2,943 of 4,608 | 63.9 % |" in card
    assert "- met: accuracy, max drop 0.05; measured 0.04" in card
    assert "- MISSED: latency, min speedup 9.0; not measured" in card
    assert "Seed: 7" in card and "torch 2.13.0" in card and "Rejected" in card
    assert "## What the zeros mean" not in card
    assert "\n\n\n" not in card


def test_the_same_job_has_the_same_card(tmp_path: Path) -> None:
    assert render(a_record(), tmp_path) == render(a_record(), tmp_path)


def test_nothing_that_was_submitted_is_obeyed(tmp_path: Path) -> None:
    name = "x](http://evil) <script>\n# Heading | `code` *bold*"
    record = a_record(name=name, metadata={"base_model": 'a"\ntags: [evil]'})
    card = render(replace(record, warnings=[{"code": "A", "message": "| <b>"}]), tmp_path)
    assert "<script" not in card and "<b>" not in card and "](http" not in card
    assert "\n# Heading" not in card
    assert front_of(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert plain("a_b\nc") == "a\\_b c"


@pytest.mark.parametrize("task", TaskName.__args__)  # type: ignore[attr-defined] # of a Literal
def test_every_task_has_its_class_and_code_that_parses(task: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    card = render(a_record(task, exports=["huggingface", "onnx", "onnx_int8"]), tmp_path)
    blocks = code_of(card)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, task, "exec")
    assert AUTO_CLASSES[task] == TASKS[task].auto  # type: ignore[index] # the parameter is one of its names
    assert ("decoder_input_ids" in blocks[1]) == (task == "translation")


def test_a_card_is_dropped_when_its_model_is_uploaded_again(tmp_path: Path) -> None:
    folder = tmp_path / "huggingface"
    folder.mkdir()
    (folder / "README.md").write_text("an older card")
    write_cards(a_record(), tmp_path)
    content = (folder / "README.md").read_bytes()
    assert content.startswith(b"---\n") and b"an older card" not in content
    assert not admit("README.md", content[:64])
