"""Layers without their attention or their feed-forward part: what is left, what it costs, and what can follow."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from service.catalog import FAMILIES as KNOWN
from service.specs.criteria import Similarity
from tests.models import tiny_network
from tests.workers.engine.tiny import logits, task_of, tiny_inputs
from tests.workers.engine.tiny import tiny_network as two_layers
from workers.engine.benchmark import count_flops, size_of
from workers.engine.criteria import CRITERIA
from workers.engine.exporters import EXPORTERS
from workers.engine.failures import EngineError
from workers.engine.families import family_of
from workers.engine.families.loading import load_network, load_with_new_head
from workers.engine.families.sizes import is_stock, structure_of
from workers.engine.modeling_secateur import Absent
from workers.engine.replica import replica
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Gate, gated
from workers.engine.structures.sublayers import ATTENTION_LAYERS, FFN_LAYERS
from workers.engine.vocabulary import cut_vocabulary

CLASSES = {
    "bert": "BertForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}
GENERATORS = ("gpt2", "llama", "qwen3", "mistral", "t5", "bart")
SUBLAYERS = ("attention_layers", "ffn_layers")
ONLY_LATER = [False, True, True, False]
"""Which of four sublayers stay: the first goes, as caches and tables of positions have to notice."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def deep(family: str, **changes: Any) -> PreTrainedModel:
    """A network of four layers in each stack."""
    known = KNOWN[family]
    sizes = {key: 4 for key in (known.layers, known.decoder_layers) if key is not None}
    network = tiny_network(family, CLASSES[family], **sizes, attn_implementation="eager", **changes)
    network.config.use_cache = False
    return network


def drop(network: PreTrainedModel, name: str, stays: list[bool] = ONLY_LATER) -> None:
    """Cuts a structure alike in all of its groups."""
    structure = STRUCTURES[name]
    structure.cut(network, [torch.tensor(stays) for _ in structure.groups(network)])


def halve(network: PreTrainedModel, name: str) -> None:
    structure = STRUCTURES[name]
    structure.cut(network, [torch.arange(group.units) < (group.units + 1) // 2 for group in structure.groups(network)])


def again(network: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """What is loaded from the network's custom export."""
    task = task_of(network.config.model_type)
    EXPORTERS["huggingface_custom"].export(network, folder, folder, task)
    loaded: PreTrainedModel = load_network(folder, task.auto).eval()
    loaded.set_attn_implementation("eager")
    loaded.config.use_cache = False
    return loaded


@pytest.mark.parametrize(
    ("family", "norms"),
    [
        ("bert", {"attention.output.LayerNorm", "output.LayerNorm"}),
        ("bart", {"self_attn_layer_norm", "final_layer_norm"}),
        ("llama", set()),
        ("gpt2", set()),
        ("t5", set()),
    ],
)
def test_a_norm_after_a_part_stays_and_one_before_it_goes(family: str, norms: set[str]) -> None:
    network = deep(family)
    for name in SUBLAYERS:
        drop(network, name)
    first = family_of(network).layers(network)[0].module
    assert {path.rpartition(".")[0] for path, _ in first.named_parameters()} == norms
    sizes = structure_of(network)
    assert sizes["attention_heads"] == [0, 4, 4, 0]
    assert sizes["ffn_width"] == [0, 48, 48, 0]
    assert sizes.get("key_value_heads", [0, 2, 2, 0]) == [0, 2, 2, 0]
    assert not is_stock(network)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_decoder_keeps_its_cross_attention(family: str) -> None:
    network = deep(family)
    drop(network, "attention_layers")
    sizes = structure_of(network)
    assert (sizes["attention_heads"], sizes["decoder_attention_heads"]) == (
        [0, 4, 4, 0],
        [0, *sizes["decoder_attention_heads"][1:3], 0],
    )
    decoder = family_of(network).sides(network)[1]
    assert [len(layer.attentions) for layer in decoder.layers] == [1, 2, 2, 1]
    assert all(layer.attentions[-1].paths is decoder.stack.attentions[1] for layer in decoder.layers)


@pytest.mark.parametrize("name", SUBLAYERS)
@pytest.mark.parametrize("family", CLASSES)
def test_without_its_first_parts_a_network_is_its_mask_and_survives_saving(
    family: str, name: str, tmp_path: Path
) -> None:
    network, structure = deep(family), STRUCTURES[name]
    inputs, groups = tiny_inputs(network), structure.groups(network)
    assert [group.units for group in groups] == [4] * len(family_of(network).stacks)
    with gated(network, structure, [Gate(torch.tensor(ONLY_LATER).float(), learn=False) for _ in groups]):
        masked = logits(network, inputs)
    drop(network, name)
    found = logits(network, inputs)
    assert torch.allclose(found, masked, atol=1e-4)
    loaded = again(network, tmp_path)
    assert torch.equal(logits(loaded, inputs), found)
    assert structure_of(loaded) == structure_of(network)
    assert loaded.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("later", ["attention_heads", "ffn_neurons", "layers", "hidden_size", "weights", *SUBLAYERS])
@pytest.mark.parametrize("family", ["bert", "bart", "gpt2", "llama", "t5"])
def test_every_other_cut_can_follow(family: str, later: str, tmp_path: Path) -> None:
    network, inputs = deep(family), tiny_inputs(deep(family))
    for name in SUBLAYERS:
        drop(network, name)
    before = structure_of(network)
    stays = [False, True, False, True] if later == "layers" else None
    halve(network, later) if stays is None else drop(network, later, stays)
    found = logits(network, inputs)
    assert bool(found.isfinite().all())
    assert later == "weights" or structure_of(network) != before
    assert torch.allclose(logits(again(network, tmp_path), inputs), found, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_the_vocabulary_can_be_cut_afterwards(family: str) -> None:
    network = deep(family)
    inputs = {name: value.clamp_max(59) for name, value in tiny_inputs(network).items()}
    drop(network, "attention_layers")
    whole = logits(network, inputs)
    cut_vocabulary(network, torch.arange(60))
    assert torch.allclose(logits(network, inputs), whole[..., :60] if family != "bert" else whole, atol=1e-5)


def test_layers_that_would_leave_no_attention_are_refused_before_anything_is_cut() -> None:
    network = deep("t5")
    drop(network, "attention_layers", [True, False, False, False])
    before = structure_of(network)
    with pytest.raises(EngineError, match="cut layers first") as caught:
        drop(network, "layers", [False, True, True, True])
    assert (caught.value.code, caught.value.blame) == ("CUT_OUT_OF_REACH", "user")
    assert structure_of(network) == before
    drop(network, "layers", [True, True, False, False])
    assert structure_of(network)["attention_heads"] == [4, 0]


@pytest.mark.parametrize("family", GENERATORS)
def test_generation_with_a_cache_says_what_it_says_without(family: str, tmp_path: Path) -> None:
    network = deep(family)
    drop(network, "attention_layers")
    loaded = again(network, tmp_path)
    inputs = {name: value for name, value in tiny_inputs(network).items() if not name.startswith("decoder")}
    told = [_generated(side, inputs, use_cache) for side in (network, loaded) for use_cache in (False, True)]
    assert len({tuple(tokens.flatten().tolist()) for tokens in told}) == 1
    beams = [_generated(loaded, inputs, use_cache, num_beams=3) for use_cache in (False, True)]
    assert torch.equal(beams[0], beams[1])


def _generated(network: Any, inputs: dict[str, Tensor], use_cache: bool, **more: Any) -> Tensor:
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | more
    found: Tensor = network.generate(**inputs, use_cache=use_cache, **settings)
    return found


def test_a_cache_needs_its_first_place() -> None:
    network = deep("llama")
    drop(network, "attention_layers")
    numbers = [layer.attentions[0].module.layer_idx for layer in family_of(network).layers(network) if layer.attentions]
    assert numbers == [0, 1]


@pytest.mark.parametrize(
    ("name", "work"),
    [
        # Four projections, and the products of queries with keys and of weights with values; or three projections.
        ("attention_layers", lambda tokens: 2 * tokens * (2 * 32 * 32 + 2 * 32 * 16) + 2 * 2 * 32 * tokens**2),
        ("ffn_layers", lambda tokens: 2 * tokens * 3 * 32 * 48),
    ],
)
def test_flops_and_bytes_are_those_of_what_is_left(name: str, work: Any) -> None:
    network = deep("llama")
    (group,) = STRUCTURES[name].groups(network)
    smaller = replica(network)
    drop(smaller, name, [True, True, True, False])
    assert count_flops(network, 16) - count_flops(smaller, 16) == work(16)
    assert size_of(network) - size_of(smaller) == 4 * int(group.totals(torch.ones_like)[3])


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "bart", "llama", "t5"])
@pytest.mark.parametrize("name", SUBLAYERS)
def test_influence_is_that_of_the_stream_before_and_after(family: str, name: str) -> None:
    network, structure = deep(family), STRUCTURES[name]
    spec = Similarity(kind="similarity")
    criterion = CRITERIA["similarity"](spec, structure, torch.Generator())
    criterion.attach(network, structure.groups(network))
    logits(network, tiny_inputs(network))
    scores = criterion.scores()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert [values.shape for values in scores] == [(4,)] * len(family_of(network).stacks)
    inputs = tiny_inputs(network)
    states = _encoder_states(network, inputs)
    layer: Any = family_of(network).layers(network)[0].module
    before, after = BY_HAND[family, name](layer, states)
    mask = inputs["attention_mask"].bool()
    expected = 1 - functional.cosine_similarity(before[mask], after[mask], dim=-1).mean()
    assert float(scores[0][0]) == pytest.approx(float(expected), abs=1e-5)


def _encoder_states(network: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What enters the first layer, its attention's output projection's result, and what enters its FFN."""
    layer = family_of(network).layers(network)[0]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found[name] = args[0] if args else kwargs["hidden_states"]
            found[f"{name} out"] = output[0] if isinstance(output, tuple) else output

        return hook

    assert layer.self_attention is not None
    parts = {"layer": layer.module, "attention": layer.self_attention.output, "ffn": layer.ffn_out}
    handles = [part.register_forward_hook(keep(name), with_kwargs=True) for name, part in parts.items()]
    logits(network, inputs)
    for handle in handles:
        handle.remove()
    return found


def _attention(_layer: Any, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return states["layer"], states["layer"] + states["attention out"]


def _ffn(normalise: Any) -> Any:
    def found(layer: Any, states: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        stream = normalise(layer)(_attention(layer, states)[1])
        return stream, stream + states["ffn out"]

    return found


BY_HAND = {(family, "attention_layers"): _attention for family in ("bert", "bart", "llama", "t5")} | {
    ("bert", "ffn_layers"): _ffn(lambda layer: layer.attention.output.LayerNorm),
    ("bart", "ffn_layers"): _ffn(lambda layer: layer.self_attn_layer_norm),
    ("llama", "ffn_layers"): _ffn(lambda _layer: nn.Identity()),
    ("t5", "ffn_layers"): _ffn(lambda _layer: nn.Identity()),
}


def test_a_table_of_positions_is_nobodys_weight() -> None:
    (encoder, _) = ATTENTION_LAYERS.groups(deep("t5"))
    sizes = encoder.totals(torch.ones_like)
    assert len(set(sizes.tolist())) == 1


def test_layers_that_are_one_set_of_weights_keep_their_parts() -> None:
    assert ATTENTION_LAYERS.groups(two_layers("albert")) == FFN_LAYERS.groups(two_layers("albert")) == []


def test_a_scale_that_depends_on_the_layer_stays_with_it(tmp_path: Path) -> None:
    network = deep("gpt2", scale_attn_by_inverse_layer_idx=True)
    inputs, structure = tiny_inputs(network), STRUCTURES["attention_layers"]
    with gated(network, structure, [Gate(torch.tensor(ONLY_LATER).float(), learn=False)]):
        masked = logits(network, inputs)
    drop(network, "attention_layers")
    assert torch.allclose(logits(network, inputs), masked, atol=1e-4)
    assert torch.allclose(logits(again(network, tmp_path), inputs), masked, atol=1e-4)


def test_a_new_head_goes_on_what_is_left(tmp_path: Path) -> None:
    network = deep("bert")
    drop(network, "attention_layers")
    again(network, tmp_path)
    task = task_of("bert")
    loaded = load_with_new_head(tmp_path, task.auto, labels=list("abcde"), problem_type=None, seed=0).eval()
    assert logits(loaded, tiny_inputs(network)).shape == (3, 5)
    assert structure_of(loaded) == structure_of(network)


def test_exports_of_before_there_were_absent_parts_load(tmp_path: Path) -> None:
    network = two_layers("bert", uneven=True)
    again(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("absent", "tables"):
        del config["secateur_sizes"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_network(tmp_path, task_of("bert").auto).eval()
    assert structure_of(loaded) == structure_of(network)


def test_an_absent_part_hands_on_what_it_is_told_to() -> None:
    states, bias = torch.ones(2, 3, 4), torch.ones(1)
    assert torch.equal(Absent()(states), torch.zeros(2, 3, 4))
    zeros, position_bias, weights = Absent(["position_bias", "weights"])(hidden_states=states, position_bias=bias)
    assert torch.equal(zeros, torch.zeros(2, 3, 4))
    assert position_bias is bias and weights is None
