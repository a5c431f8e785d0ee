"""A network whose vocabulary was cut answers and generates as before, with the tokens that are left."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from workers.engine.vocabulary import cut_vocabulary


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 40}
BOTH_SIDES = {
    **{f"{side}_{size}": value for side in ("encoder", "decoder") for size, value in
       (("layers", 1), ("attention_heads", 2), ("ffn_dim", 40))},
    "d_model": 32, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
LLAMA = {"num_key_value_heads": 2, "bos_token_id": 5, "eos_token_id": [6, 90]}

NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "ForSequenceClassification", ENCODER),
    "bert mlm": ("Bert", "ForMaskedLM", ENCODER),
    "bert mlm untied": ("Bert", "ForMaskedLM", ENCODER | {"tie_word_embeddings": False}),
    "roberta": ("Roberta", "ForTokenClassification", ENCODER | {"pad_token_id": 1}),
    "roberta mlm": ("Roberta", "ForMaskedLM", ENCODER | {"pad_token_id": 1}),
    "xlm-roberta mlm": ("XLMRoberta", "ForMaskedLM", ENCODER | {"pad_token_id": 1}),
    "distilbert mlm": (
        "DistilBert",
        "ForMaskedLM",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 40},
    ),
    "electra": ("Electra", "ForQuestionAnswering", ENCODER | {"embedding_size": 16}),
    "electra mlm": ("Electra", "ForMaskedLM", ENCODER | {"embedding_size": 16}),
    "albert mlm": ("Albert", "ForMaskedLM", ENCODER | {"embedding_size": 16}),
    "deberta-v2": ("DebertaV2", "ForSequenceClassification", ENCODER),
    "deberta-v2 mlm": ("DebertaV2", "ForMaskedLM", ENCODER | {"legacy": False}),
    "deberta-v2 mlm legacy": ("DebertaV2", "ForMaskedLM", ENCODER),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "t5 untied": ("T5", "ForConditionalGeneration", T5 | {"tie_word_embeddings": False}),
    "bart": ("Bart", "ForConditionalGeneration", BOTH_SIDES),
    "bart classifier": ("Bart", "ForSequenceClassification", BOTH_SIDES),
    "marian": (
        "Marian",
        "MTModel",
        BOTH_SIDES | {"pad_token_id": 119, "decoder_start_token_id": 119, "eos_token_id": 0, "forced_eos_token_id": 0},
    ),
    "gpt2": (
        "GPT2",
        "LMHeadModel",
        {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40, "bos_token_id": 119, "eos_token_id": 119},
    ),
    "llama": ("Llama", "ForCausalLM", ENCODER | LLAMA | {"tie_word_embeddings": True}),
    "llama untied": ("Llama", "ForCausalLM", ENCODER | LLAMA | {"pad_token_id": 90}),
}
ROWS = 120
KEPT = torch.tensor([*range(8), *range(9, 110, 3), 119])


def network_of(name: str) -> Any:
    family, head, sizes = NETWORKS[name]
    sizes = {"hidden_size": 32} | sizes if "num_hidden_layers" in sizes else sizes
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=ROWS, **sizes)
    network = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if "norm" not in parameter_name.lower() and parameter.requires_grad:
                parameter.normal_(0, 0.2)
        if hasattr(network, "final_logits_bias"):
            network.final_logits_bias.normal_(0, 1)
    return network


def logits(network: Any, ids: Tensor) -> Tensor:
    """Scores of every output; where a network marks the ends of an answer, those of its starts."""
    if type(network).__name__ == "BartForSequenceClassification":
        ids = torch.cat([ids, torch.full((len(ids), 1), network.config.eos_token_id)], 1)
    sides = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = network(input_ids=ids, **sides)
    scores: Tensor = found.start_logits if "start_logits" in found else found.logits
    return scores


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_before_and_survives_saving(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    ids = torch.randint(8, len(KEPT) - 1, (3, 12), generator=torch.Generator().manual_seed(1))
    before, parameters = logits(network, KEPT[ids]), network.num_parameters()
    before = before[..., KEPT] if before.shape[-1] == ROWS else before
    cut_vocabulary(network, KEPT)
    assert network.config.vocab_size == network.get_input_embeddings().num_embeddings == len(KEPT)
    assert network.num_parameters() < parameters
    assert ROWS not in {getattr(module, "out_features", None) for module in network.modules()}
    assert ROWS not in {getattr(module, "vocab_size", None) for module in network.modules()}
    assert torch.allclose(logits(network, ids), before, atol=1e-5)
    network.save_pretrained(tmp_path)
    loaded, info = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.num_parameters() == network.num_parameters()
    assert torch.allclose(logits(loaded.eval(), ids), before, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "gpt2", "llama"])
def test_a_network_generates_as_before(name: str) -> None:
    """Greedily: beams compare probabilities, which grow where other tokens are gone."""
    network = network_of(name)
    generation = network.generation_config
    generation.max_new_tokens, generation.do_sample, generation.num_beams = 8, False, 1
    generation.suppress_tokens = [token for token in range(ROWS) if token not in KEPT]
    generation.bad_words_ids = [[9, 10], [12, 15], [18]]
    ids = torch.randint(8, len(KEPT) - 1, (3, 12), generator=torch.Generator().manual_seed(1))
    before = network.generate(input_ids=KEPT[ids], attention_mask=torch.ones_like(ids))
    cut_vocabulary(network, KEPT)
    assert generation.suppress_tokens is None
    assert generation.bad_words_ids == [[9, 10], [11]], "a sequence with a token that is gone is gone"
    assert torch.equal(KEPT[network.generate(input_ids=ids, attention_mask=torch.ones_like(ids))], before)


def test_every_id_of_every_config_is_renumbered() -> None:
    network = network_of("llama untied")
    network.config.task_specific_params = {"summary": {"forced_bos_token_id": 12, "max_length": 12}}
    network.config.sep_token_id, network.config.cls_token_id = -1, 13
    network.config.part = transformers.LlamaConfig(vocab_size=ROWS, pad_token_id=15)
    cut_vocabulary(network, KEPT)
    config, new = network.config, KEPT.tolist().index
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, [6, new(90)], new(90))
    assert network.generation_config.eos_token_id == [6, new(90)]
    assert config.task_specific_params == {"summary": {"forced_bos_token_id": new(12), "max_length": 12}}
    assert (config.sep_token_id, config.cls_token_id) == (-1, None), "no token before, and one that is gone"
    assert (config.part.vocab_size, config.part.pad_token_id) == (len(KEPT), new(15))
    assert network.get_input_embeddings().padding_idx == new(90)


def test_ids_beyond_the_embeddings_stay_beyond_them() -> None:
    network = network_of("bert")
    cut_vocabulary(network, torch.tensor([0, 1, 2, ROWS, ROWS + 1]))
    assert network.config.vocab_size == 3


def test_padding_that_positions_count_from_may_not_move() -> None:
    network = network_of("roberta")
    for kept in (torch.arange(1, 50), torch.arange(2, 50)):
        with pytest.raises(ValueError, match="positions count from"):
            cut_vocabulary(network, kept)
    assert network.config.vocab_size == ROWS
