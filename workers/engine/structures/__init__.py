"""Structures: which units exist, how to switch one off for scoring, and how to cut it for good.

The vocabulary is a structure too, but nothing scores its rows: see `workers.engine.vocabulary`.
"""

from workers.engine.structures.attention_heads import AttentionHeads
from workers.engine.structures.ffn_neurons import FfnNeurons
from workers.engine.structures.hidden_size import HiddenSize
from workers.engine.structures.layers import Layers
from workers.engine.structures.structure import Structure
from workers.engine.structures.sublayers import ATTENTION_LAYERS, FFN_LAYERS
from workers.engine.structures.weights import Weights

STRUCTURES: dict[str, Structure] = {
    "attention_heads": AttentionHeads(),
    "ffn_neurons": FfnNeurons(),
    "layers": Layers(),
    "attention_layers": ATTENTION_LAYERS,
    "ffn_layers": FFN_LAYERS,
    "hidden_size": HiddenSize(),
    "weights": Weights(),
}
"""Those whose units are scored."""
