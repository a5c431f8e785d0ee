"""The job specs in `docs/examples`: each is taken at the door for the model that it is written for."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.resolve import resolve
from service.specs import QUALITY_METRICS, JobSpec
from service.tables import Model
from tests.service.samples import a_dataset, a_model_of

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
IDS = {"model_id": "mdl_" + "0" * 26, "dataset_id": "ds_" + "0" * 26}
MINILM = {"layers": 6, "hidden_size": 384, "attention_heads": [12] * 6, "ffn_width": [1536] * 6, "vocabulary": 30522}
MARIAN = {
    **{"layers": 3, "hidden_size": 192, "attention_heads": [4] * 3, "ffn_width": [768] * 3, "vocabulary": 4001},
    **{"decoder_layers": 2, "decoder_attention_heads": [4] * 2, "decoder_ffn_width": [768] * 2},
}
SMOLLM2 = {
    **{"layers": 30, "hidden_size": 576, "attention_heads": [9] * 30, "ffn_width": [1536] * 30, "vocabulary": 49152},
    "key_value_heads": [3] * 30,
}


def encoder() -> Model:
    """A bare MiniLM."""
    facts = {"max_length": 512, "labels": None, "has_head": False}
    return a_model_of("bert", task=None, architecture="BertModel", structure=MINILM, facts=facts)


MODELS = {
    "text-classification": a_model_of("bert", structure=MINILM, facts={"max_length": 512}),
    "question-answering": encoder(),
    "translation": a_model_of("marian", structure=MARIAN),
    "token-classification": encoder(),
    "causal-lm": a_model_of("llama", structure=SMOLLM2, facts={"max_length": 8192}),
}


def example(name: str) -> dict[str, Any]:
    """A spec as `secateur run` takes it: without what it is run on."""
    spec: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text())
    return spec


def test_every_example_is_tried_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_an_example_is_taken(name: str) -> None:
    spec = JobSpec.model_validate(example(name) | IDS)
    labels = {"integers": 1} if name == "text-classification" else {}
    configuration, warnings = resolve(spec, MODELS[name], a_dataset(task=name, labels=labels))
    assert spec.task == name
    assert spec.finetuning is not None and spec.acceptance and "onnx" in spec.exports
    assert {goal.metric for goal in spec.acceptance} & {*QUALITY_METRICS[name]}, "quality is what a cut costs"
    assert configuration["benchmark"]["sequence_length"] <= MODELS[name].facts["max_length"]
    assert warnings == [], "what the service recommends, it does not warn of"
