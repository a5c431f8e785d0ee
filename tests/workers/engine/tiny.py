"""Tiny random networks of every family, with outputs that differ from row to row."""

from math import ceil

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.models import LARGE_INIT, SIZES
from workers.engine.families import FAMILIES as KNOWN
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group
from workers.engine.tasks import TASKS, Task
from workers.engine.verification import random_inputs

FAMILIES = tuple(KNOWN)
UNEVEN_WIDTHS = (20, 33)
"""Neurons of the two layers of a network whose sizes no stock config can express."""

PAIRS = [
    (family, structure)
    for family in FAMILIES
    for structure in STRUCTURES
    if not (structure.endswith("layers") and KNOWN[family].shares_layers)
]
"""Every family with every structure whose units are scored; ALBERT's layers are one set of weights, which stays."""

AUTO_CLASSES = {
    "marian": "AutoModelForSeq2SeqLM",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "qwen2": "AutoModelForCausalLM",
    "qwen3": "AutoModelForCausalLM",
    "mistral": "AutoModelForCausalLM",
}
"""Usual heads; all other families classify."""

_LIKE_THE_ENCODER = {
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}
_CHANGES = {"bart": _LIKE_THE_ENCODER, "marian": _LIKE_THE_ENCODER, "t5": {"num_decoder_layers": 2}}


def auto_class(family: str) -> str:
    """Name of the class of transformers that loads the family's network."""
    return AUTO_CLASSES.get(family, "AutoModelForSequenceClassification")


def task_of(family: str) -> type[Task]:
    """The task that the family's usual head is for."""
    return next(task for task in TASKS.values() if task.auto == auto_class(family))


def tiny_network(
    family: str, *, seed: int = 0, uneven: bool = False, vocabulary: int = 120, labels: int = 3
) -> PreTrainedModel:
    """Two layers of four heads, hidden size 32, FFN width 48, three labels; with `uneven` other sizes in each layer.

    These are three heads and one (of shared key-value heads two and one), and UNEVEN_WIDTHS.
    """
    torch.manual_seed(seed)
    network = _build(family, vocabulary, labels)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.normal_(0, LARGE_INIT)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.02)
    if uneven:
        make_uneven(network)
    network.train(False)
    return network


def _build(family: str, vocabulary: int, labels: int) -> PreTrainedModel:
    settings = SIZES[family] | _CHANGES.get(family, {})
    settings |= {"vocab_size": vocabulary, "num_labels": labels, "attn_implementation": "eager", "use_cache": False}
    config = transformers.AutoConfig.for_model(family, **settings)
    network: PreTrainedModel = getattr(transformers, auto_class(family)).from_config(config)
    return network


def make_uneven(network: PreTrainedModel) -> None:
    """Cuts a share of the heads and neurons of every layer that differs between the layers."""
    for name, left in (("attention_heads", _uneven_heads), ("ffn_neurons", _uneven_neurons)):
        structure = STRUCTURES[name]
        structure.cut(network, [torch.arange(group.units) < left(group) for group in structure.groups(network)])


def _uneven_heads(group: Group) -> int:
    return max(1, group.units // 4) if group.layer == 1 else ceil(group.units * 0.75)


def _uneven_neurons(group: Group) -> int:
    return UNEVEN_WIDTHS[group.layer]


def halves(network: PreTrainedModel, structure: str) -> list[Tensor]:
    """Random masks that keep half of every group: sizes that a stock config can express, where it can express any."""
    chance = torch.Generator().manual_seed(2)
    masks = []
    for group in STRUCTURES[structure].groups(network):
        order = torch.randperm(group.units, generator=chance)
        masks.append(torch.isin(torch.arange(group.units), order[: group.units // 2]))
    return masks


def tiny_inputs(network: PreTrainedModel) -> dict[str, Tensor]:
    """Three rows of nine random tokens, the second padded."""
    inputs = random_inputs(network, (3, 9), torch.Generator().manual_seed(1))
    inputs["attention_mask"][1, 5:] = 0
    return inputs


def logits(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the network answers, without gradients."""
    with torch.no_grad():
        found: Tensor = network(**inputs).logits
    return found
