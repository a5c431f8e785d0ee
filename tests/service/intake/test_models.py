"""Directories that transformers itself writes are taken, and what is stored loads again with the same outputs."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from service.catalog import FAMILIES
from service.intake.limits import Limits
from service.intake.models import Checked, publish, read_model
from service.storage.local import LocalStorage
from service.tables import Model
from tests.models import tiny_model, tiny_network


def _tar(folder: Path) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(folder, arcname="my-model")
    target.seek(0)
    return target


def _read(folder: Path, scratch: Path) -> Checked:
    scratch.mkdir()
    return read_model(_tar(folder), scratch, Limits("model", 1 << 30, scratch, 0))


def _store(checked: Checked, root: Path) -> tuple[Model, Path]:
    row = publish(LocalStorage(root), checked, tenant="t", name="n", metadata={})
    return row, root / row.prefix


CLASSIFIERS = [name for name, family in FAMILIES.items() if "text-classification" in family.architectures.values()]
EVERY = [(family.model_type, architecture) for family in FAMILIES.values() for architecture in family.architectures]
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "BertForSequenceClassification", {"num_labels": 5, "problem_type": "multi_label_classification"}),
    ("bert", "BertForMaskedLM", {"tie_word_embeddings": False}),
    ("electra", "ElectraForMaskedLM", {"embedding_size": 32}),
    ("albert", "AlbertForMaskedLM", {"num_hidden_layers": 4, "inner_group_num": 2}),
    ("deberta-v2", "DebertaV2ForMaskedLM", {"relative_attention": False, "pos_att_type": None}),
    (
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        {
            "pos_att_type": "p2c|c2p",
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "position_buckets": -1,
            "position_biased_input": True,
            "type_vocab_size": 2,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "legacy": False,
        },
    ),
    ("marian", "MarianMTModel", {"tie_word_embeddings": False}),
    ("marian", "MarianMTModel", {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60}),
    (
        "marian",
        "MarianMTModel",
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60, "tie_word_embeddings": False},
    ),
    ("bart", "BartForConditionalGeneration", {"scale_embedding": True, "activation_function": "relu"}),
    ("t5", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}),
    ("t5", "T5ForConditionalGeneration", {"d_kv": 12, "relative_attention_num_buckets": 8}),
    ("gpt2", "GPT2LMHeadModel", {"n_inner": None, "scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False}),
    ("llama", "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", "LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}),
    (
        "llama",
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
                "rope_theta": 5e5,
            }
        },
    ),
    ("qwen2", "Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0}),
    ("qwen3", "Qwen3ForCausalLM", {"head_dim": 12, "tie_word_embeddings": True, "attention_bias": True}),
    ("mistral", "MistralForCausalLM", {"sliding_window": 2, "num_key_value_heads": 1}),
]


def _outputs(folder: Path, architecture: str) -> torch.Tensor:
    network, loading = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    tokens = torch.tensor([[2, 7, 8, 5, 9, 3]])
    extra = {"decoder_input_ids": tokens} if network.config.is_encoder_decoder else {}
    outputs: torch.Tensor = network.eval()(input_ids=tokens, **extra)[0]
    return outputs


@pytest.mark.parametrize(
    ("family", "architecture", "changes"), [*((*names, {}) for names in EVERY), *VARIANTS], ids=str
)
def test_what_transformers_writes_is_taken_and_loads_again(
    family: str, architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    network = tiny_network(family, architecture, **changes)
    network.save_pretrained(tmp_path / "given")
    row, stored = _store(_read(tmp_path / "given", tmp_path / "scratch"), tmp_path / "storage")
    assert torch.equal(_outputs(tmp_path / "given", architecture), _outputs(stored, architecture))
    assert (row.family, row.architecture, row.state) == (family, architecture, "ready")
    assert row.task == FAMILIES[family].architectures[architecture]
    assert row.facts["has_head"] == (row.task is not None)
    assert row.parameters == network.num_parameters()
    assert row.structure == _structure_of(network)


def _structure_of(network: PreTrainedModel) -> dict[str, Any]:
    """Sizes as the library's own config and table of words show them."""
    config, family = network.config, FAMILIES[network.config.model_type]

    def of(role: str) -> Any:
        key = getattr(family, role)
        return key and getattr(config, key)

    sizes = {
        "layers": of("layers"),
        "hidden_size": of("hidden"),
        "attention_heads": [of("heads")] * of("layers"),
        "ffn_width": [of("ffn") or 4 * of("hidden")] * of("layers"),
        "vocabulary": network.get_input_embeddings().num_embeddings,
    }
    if family.kv_heads:
        sizes["key_value_heads"] = [of("kv_heads")] * of("layers")
    if family.stacks:
        layers = of("decoder_layers")
        sizes["decoder_layers"] = layers
        sizes["decoder_attention_heads"] = [of("decoder_heads")] * layers
        sizes["decoder_ffn_width"] = [of("decoder_ffn")] * layers
    return sizes


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("head", [True, False])
def test_a_classifier_names_its_labels(family: str, head: bool, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given", family, head=head)
    row, _ = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    assert (row.facts["has_head"], row.facts["has_tokenizer"]) == (head, True)
    assert row.facts["labels"] == (["LABEL_0", "LABEL_1"] if head else None)


def test_the_tokenizer_loads_again(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    _, stored = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    before, after = (AutoTokenizer.from_pretrained(place) for place in (folder, stored))
    assert type(before) is type(after)
    assert after.chat_template == "{{ messages[0].content }}"
    assert before("a good film")["input_ids"] == after("a good film")["input_ids"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    AutoModel.from_pretrained(folder).to(dtype).save_pretrained(tmp_path / "half")
    row, _ = _store(_read(tmp_path / "half", tmp_path / "scratch"), tmp_path / "storage")
    assert row.dtype == str(dtype).removeprefix("torch.")


def test_a_failing_storage_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = _read(tiny_model(tmp_path / "given"), tmp_path / "scratch")
    storage = LocalStorage(tmp_path / "storage")
    put = storage.put

    def breaks(key: str, source: Path) -> None:
        if key.endswith("vocab.txt"):
            raise OSError("the disk is gone")
        put(key, source)

    monkeypatch.setattr(storage, "put", breaks)
    with pytest.raises(OSError, match="gone"):
        publish(storage, checked, tenant="t", name="n", metadata={})
    assert list(storage.list("models")) == []


def test_a_classifier_without_its_pooler_counts_as_untrained(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "given")
    weights = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    assert not _read(folder, tmp_path / "scratch").has_head


def test_names_of_old_checkpoints_are_taken(tmp_path: Path) -> None:
    """Old BERT files call a norm's weight `gamma` and its bias `beta`; transformers still loads them."""
    folder = tiny_model(tmp_path / "given")
    before = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    _, stored = _store(_read(folder, tmp_path / "scratch"), tmp_path / "storage")
    after = AutoModelForSequenceClassification.from_pretrained(stored).eval()
    tokens = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(before(tokens)[0], after(tokens)[0])
