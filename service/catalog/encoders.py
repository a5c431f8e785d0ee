"""Encoders: text in, one vector for each token out."""

from service.catalog.family import Default, Family
from service.catalog.keys import COMMON, ENCODER, LABELS, SUMMARY, words

TASKS = ("text-classification", "question-answering", "token-classification", "masked-lm", "sentence-embedding")
_HEADS = {
    "Model": None,
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
_TYPES: dict[str, Default] = {"type_vocab_size": lambda _: 2}
_EMBEDDING: dict[str, Default] = {"embedding_size": lambda _: 128}


def _heads(prefix: str, pretraining: str | None = None) -> dict[str, str | None]:
    """Classes of a family; `pretraining` is the task of its `ForPreTraining`, where it has one."""
    heads: dict[str, str | None] = {f"{prefix}{suffix}": task for suffix, task in _HEADS.items()}
    return heads if pretraining is None else {**heads, f"{prefix}ForPreTraining": pretraining or None}


BERT = Family("bert", _heads("Bert", "masked-lm"), TASKS, defaults=_TYPES, config_keys=ENCODER)
ROBERTA = Family("roberta", _heads("Roberta"), TASKS, position_offset=2, defaults=_TYPES, config_keys=ENCODER)
XLM_ROBERTA = Family(
    "xlm-roberta", _heads("XLMRoberta"), TASKS, position_offset=2, defaults=_TYPES, config_keys=ENCODER
)
DISTILBERT = Family(
    "distilbert",
    _heads("DistilBert"),
    TASKS,
    layers="n_layers",
    heads="n_heads",
    ffn="hidden_dim",
    hidden="dim",
    config_keys=COMMON
    | LABELS
    | words(
        """dim n_layers n_heads hidden_dim max_position_embeddings initializer_range activation dropout
        attention_dropout sinusoidal_pos_embds qa_dropout seq_classif_dropout tie_weights_"""
    ),
)
ELECTRA = Family(
    "electra",
    _heads("Electra", ""),
    TASKS,
    defaults=_TYPES | _EMBEDDING,
    config_keys=ENCODER | SUMMARY | {"embedding_size"},
)
DEBERTA_V2 = Family(
    "deberta-v2",
    _heads("DebertaV2"),
    TASKS,
    defaults={
        "type_vocab_size": lambda _: 0,
        "pooler_hidden_size": lambda config: int(config["hidden_size"]),
        "conv_kernel_size": lambda _: 0,
        "conv_groups": lambda _: 1,
    },
    config_keys=ENCODER
    | words(
        """relative_attention max_relative_positions position_buckets norm_rel_ebd share_att_key position_biased_input
        pos_att_type pooler_dropout pooler_hidden_act pooler_hidden_size legacy conv_kernel_size conv_act conv_groups
        cls_dropout"""
    ),
)
ALBERT = Family(
    "albert",
    _heads("Albert", "masked-lm"),
    TASKS,
    defaults=_TYPES | _EMBEDDING | {"num_hidden_groups": lambda _: 1, "inner_group_num": lambda _: 1},
    config_keys=ENCODER | words("embedding_size num_hidden_groups inner_group_num classifier_dropout_prob"),
    structures=("attention_heads", "ffn_neurons", "vocabulary", "weights"),
    stock_structures=("ffn_neurons", "vocabulary", "weights"),
    reasons={
        "layers": "all its layers share the same weights, so leaving layers out makes nothing smaller",
        "attention_layers": "all its layers share one attention, which has to stay",
        "ffn_layers": "all its layers share one feed-forward part, which has to stay",
        "hidden_size": "its hidden size is not cut in this version",
    },
)
