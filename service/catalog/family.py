"""What there is to know of one family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Default: TypeAlias = Callable[[Mapping[str, Any]], int]
"""The value of a size that a config may leave out, from the sizes that it has."""


@dataclass(frozen=True)
class Family:
    """Facts of one `model_type`: where its sizes stand in the config, what its heads do, what it can lose."""

    model_type: str
    architectures: Mapping[str, str | None]
    """Class of the network to the task of its head, None for one without a head; the first is the default."""
    tasks: tuple[str, ...]
    """What a network of this family can be used for, with a head of its own or with a new one."""
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    ffn: str = "intermediate_size"
    hidden: str = "hidden_size"
    vocabulary: str = "vocab_size"
    positions: str | None = "max_position_embeddings"
    """None where the config sets no limit to a text."""
    position_offset: int = 0
    """Positions that the table spends on padding, so the longest text is `positions` less this."""
    decoder_layers: str | None = None
    decoder_heads: str | None = None
    decoder_ffn: str | None = None
    """The last three of the second stack, for an encoder-decoder alone."""
    kv_heads: str | None = None
    """Key-value heads where several query heads share one; heads are then cut by such groups."""
    head_width: str | None = None
    """Where a head's width has a key of its own; elsewhere it is the hidden size over the number of heads."""
    defaults: Mapping[str, Default] = field(default_factory=dict)
    config_keys: frozenset[str] = frozenset()
    structures: tuple[str, ...] = (
        *("attention_heads", "ffn_neurons", "layers", "attention_layers", "ffn_layers"),
        *("hidden_size", "vocabulary", "weights"),
    )
    stock_structures: tuple[str, ...] = ("ffn_neurons", "layers", "vocabulary", "weights")
    """Structures whose uniform cut a stock config can express, so that plain `from_pretrained` loads the result."""
    one_size: tuple[str, ...] = ()
    """Structures for which a stock config holds one number for both stacks."""
    heads_divide_hidden: bool = False
    """Whether a stock config is refused unless the heads divide the hidden size, explicit head width or not."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a structure cannot be cut, where the family's build is the cause."""
    criteria: frozenset[str] | None = None
    """The only criteria that can be used; None for all."""
    exports: tuple[str, ...] = ("huggingface", "huggingface_custom", "onnx", "onnx_int8")
    known: bool = True
    """Whether the network can be built: of an unknown one only the tensors are seen."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of its stacks of layers where there are two."""
        return ("encoder", "decoder") if self.decoder_layers else ()
