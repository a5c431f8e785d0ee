"""What the service knows of each family, as data: the door checks a model and a spec against it without any ML.

A family is an architecture kind, named by `model_type` of its `config.json`. The engine's own registry holds the
surgery; a test keeps the two in step.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Facts of one `model_type`: where its sizes stand in the config, what its heads do, what it can lose."""

    model_type: str
    tasks: dict[str, str]
    """Architecture class to task, `text-classification` or `` for a bare encoder."""
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    ffn: str = "intermediate_size"
    hidden: str = "hidden_size"
    position_offset: int = 0
    """Positions that the table spends on padding, so the longest text is `max_position_embeddings` less this."""
    config_keys: frozenset[str] = frozenset()
    structures: tuple[str, ...] = ("attention_heads", "ffn_neurons", "layers", "weights")
    stock_structures: tuple[str, ...] = ("ffn_neurons", "layers", "weights")
    """Structures whose uniform cut a stock config can express, so that plain `from_pretrained` loads the result."""
    exports: tuple[str, ...] = ("huggingface", "huggingface_custom", "onnx", "onnx_int8")


_COMMON = frozenset(
    """architectures model_type id2label label2id num_labels problem_type torch_dtype dtype transformers_version
    pad_token_id bos_token_id eos_token_id vocab_size max_position_embeddings initializer_range
    classifier_dropout tie_word_embeddings""".split()
)
_BERT = _COMMON | frozenset(
    """hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob
    attention_probs_dropout_prob type_vocab_size layer_norm_eps position_embedding_type use_cache is_decoder
    add_cross_attention gradient_checkpointing""".split()
)
_DISTILBERT = _COMMON | frozenset(
    """dim n_layers n_heads hidden_dim activation dropout attention_dropout sinusoidal_pos_embds qa_dropout
    seq_classif_dropout tie_weights_""".split()
)


def _encoder_tasks(prefix: str) -> dict[str, str]:
    return {
        f"{prefix}Model": "",
        f"{prefix}ForMaskedLM": "",
        f"{prefix}ForPreTraining": "",
        f"{prefix}ForSequenceClassification": "text-classification",
    }


FAMILIES: dict[str, Family] = {
    "bert": Family("bert", _encoder_tasks("Bert"), config_keys=_BERT),
    "distilbert": Family(
        "distilbert",
        _encoder_tasks("DistilBert"),
        layers="n_layers",
        heads="n_heads",
        ffn="hidden_dim",
        hidden="dim",
        config_keys=_DISTILBERT,
    ),
    "roberta": Family("roberta", _encoder_tasks("Roberta"), position_offset=2, config_keys=_BERT),
}


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether the files of a model can turn text into tokens."""
    return bool({"tokenizer.json", "vocab.txt"} & set(names)) or {"vocab.json", "merges.txt"} <= set(names)
