"""What the service knows of each family, as data: the door checks a model and a spec against it without any ML.

A family is an architecture kind, named by `model_type` of its `config.json`. The engine's own registry holds the
surgery; a test keeps the two in step.
"""

from collections.abc import Collection

from service.catalog.decoders import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3
from service.catalog.encoder_decoders import BART, MARIAN, T5
from service.catalog.encoders import ALBERT, BERT, DEBERTA_V2, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from service.catalog.family import Family

__all__ = ["FAMILIES", "Family", "family_of", "has_tokenizer"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT, DISTILBERT, ROBERTA, XLM_ROBERTA, ELECTRA, DEBERTA_V2, ALBERT,
        MARIAN, T5, BART,
        GPT2, LLAMA, QWEN2, QWEN3, MISTRAL,
    )
}  # fmt: skip

_UNKNOWN_REASON = "its architecture is not known here, so only its single weights can be cut"
_TOKENIZERS = (
    {"tokenizer.json"},
    {"vocab.txt"},
    {"vocab.json", "merges.txt"},
    {"vocab.json", "source.spm", "target.spm"},
    {"spiece.model"},
    {"spm.model"},
    {"sentencepiece.bpe.model"},
    {"tokenizer.model"},
)


def family_of(model_type: str) -> Family:
    """The family of a `model_type`; where it is not one of FAMILIES, one that can lose single weights, without data."""
    return FAMILIES.get(model_type) or Family(
        model_type,
        {},
        (),
        structures=("weights",),
        stock_structures=("weights",),
        reasons=dict.fromkeys(Family.structures, _UNKNOWN_REASON),
        criteria=frozenset({"magnitude"}),
        exports=("huggingface",),
        known=False,
    )


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether the files of a model can turn text into tokens."""
    return any(needed <= set(names) for needed in _TOKENIZERS)
