"""Families: where each `model_type` keeps the parts of a layer; chosen by the config, never by a substring."""

import json
from pathlib import Path

from transformers import PreTrainedModel

from workers.engine.failures import EngineError
from workers.engine.families import albert, bart, bert, deberta_v2, distilbert, gpt2, llama, t5
from workers.engine.families.family import Family

FAMILIES: dict[str, Family] = {
    "bert": bert.BERT,
    "distilbert": distilbert.DISTILBERT,
    "roberta": bert.ROBERTA,
    "xlm-roberta": bert.XLM_ROBERTA,
    "electra": bert.ELECTRA,
    "deberta-v2": deberta_v2.DEBERTA_V2,
    "albert": albert.ALBERT,
    "marian": bart.MARIAN,
    "t5": t5.T5,
    "bart": bart.BART,
    "gpt2": gpt2.GPT2,
    "llama": llama.LLAMA,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "mistral": llama.MISTRAL,
}


def family_of(network: PreTrainedModel) -> Family:
    """The family of a live network."""
    return FAMILIES[network.config.model_type]


def family_in(folder: Path) -> Family:
    """The family of a saved network. Raises EngineError MODEL_UNUSABLE for an unknown `model_type`."""
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise EngineError("MODEL_UNUSABLE", f"the engine knows only {', '.join(sorted(FAMILIES))}", blame="user")
    return FAMILIES[model_type]
