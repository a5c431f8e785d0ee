"""What a family is: where an architecture keeps the parts of a layer, as data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from service import catalog
from workers.engine.modeling_secateur import Absent

LONGEST_RELATIVE = 512
"""Tokens that networks of relative positions are trained on (T5: Raffel et al., 2020)."""

HEAD_NORMS = ("q_norm", "k_norm")
"""Norms of single heads, which are no wider than a head."""


@dataclass(frozen=True)
class Attention:
    """Paths of one attention below its layer."""

    module: str
    """Holds the counts of heads and, by `config`, their width."""
    inputs: tuple[str, ...]
    """Projections whose rows belong to heads: query, key, value and more; those that are missing are skipped."""
    output: str
    counts: tuple[str, ...]
    """Attributes of `module` with the number of query heads."""
    widths: tuple[str, ...] = ()
    """Attributes of `module` with the number of features of all query heads together."""
    fused: int = 1
    """How many projections lie one after the other in each of `inputs`."""
    beside: tuple[str, ...] = ("attention_weights",)
    """What `module` gives after the states, by name: an argument that it hands on has the name it is given by."""


@dataclass(frozen=True)
class Stack:
    """Paths of one side of a network."""

    name: str
    """`encoder` or `decoder`."""
    layers: str
    """The list of layers, below the base network."""
    attentions: tuple[Attention, ...]
    ffn_in: tuple[str, ...]
    """First projections of the feed-forward part, gated ones too; those that are missing are skipped."""
    ffn_out: str
    attention_parts: tuple[str, ...] = ()
    ffn_parts: tuple[str, ...] = ()
    """Modules that go when a layer loses its self-attention or its feed-forward part; the first of each is given the
    residual stream. A norm before the part goes with it, one after it stays."""
    position_bias: str | None = None
    """Below the first layer with self-attention: an embedding with a column for each head of the first attentions of
    all layers."""


@dataclass(frozen=True)
class Family:
    """One architecture kind: its paths; where its sizes stand in the config is in the service's catalog."""

    model_type: str
    stacks: tuple[Stack, ...]
    computes_positions: bool = False
    """Whether a table of positions is made from the config and not saved, so that no feature of it can be dropped."""
    shares_layers: bool = False
    """Whether all layers are one set of weights, so that none can be dropped."""

    @property
    def facts(self) -> catalog.Family:
        """Names of its sizes in the config, and what a stock config can say."""
        return catalog.FAMILIES[self.model_type]

    def sides(self, network: PreTrainedModel) -> list["Side"]:
        """The live stacks: encoder first."""
        return [Side(self, stack, network) for stack in self.stacks]

    def layers(self, network: PreTrainedModel) -> list["Layer"]:
        """Every layer of every stack, in order."""
        return [layer for side in self.sides(network) for layer in side.layers]

    def example(self, network: PreTrainedModel) -> dict[str, Tensor]:
        """Inputs of (2, 16), by the names that the network takes: a batch of one would be exported as a constant."""
        names = ["input_ids", "attention_mask"]
        if getattr(network.config, "type_vocab_size", 1) > 1 and len(self.stacks) == 1:
            names.append("token_type_ids")
        if len(self.stacks) == 2:
            names.append("decoder_input_ids")
        shape = (2, min(16, self.longest(network)))
        return {name: torch.ones(shape, dtype=torch.long) for name in names}

    def longest(self, network: PreTrainedModel) -> int:
        """The most tokens that the network's position table allows, or where it has none are of use."""
        if self.facts.positions is None:
            return LONGEST_RELATIVE
        return int(getattr(network.config, self.facts.positions)) - self.facts.position_offset


@dataclass(frozen=True)
class Side:
    """One live stack."""

    family: Family
    stack: Stack
    network: PreTrainedModel

    @property
    def modules(self) -> nn.ModuleList:
        """The list of transformer layers."""
        stack = self.network.base_model.get_submodule(self.stack.layers)
        assert isinstance(stack, nn.ModuleList)
        return stack

    @property
    def layers(self) -> list["Layer"]:
        """Every transformer layer's parts, in order."""
        return [Layer(self, index, module) for index, module in enumerate(self.modules)]

    @property
    def second(self) -> bool:
        """Whether it is the second of two stacks, whose sizes have keys of their own."""
        return self.stack is not self.family.stacks[0]

    @property
    def layers_key(self) -> str:
        """Key of the number of layers."""
        facts = self.family.facts
        return str(facts.decoder_layers if self.second else facts.layers)

    @property
    def ffn_key(self) -> str:
        """Key of the feed-forward width."""
        facts = self.family.facts
        return str(facts.decoder_ffn if self.second else facts.ffn)

    @property
    def heads_key(self) -> str:
        """Key of the number of heads."""
        facts = self.family.facts
        return str(facts.decoder_heads if self.second else facts.heads)

    @property
    def owner(self) -> Any:
        """The module that holds the list of layers."""
        return self.network.base_model.get_submodule(self.stack.layers.rpartition(".")[0])

    @property
    def config(self) -> Any:
        """The config of the stack: that of the network, or a copy."""
        return getattr(self.owner, "config", self.network.config)

    @property
    def position_bias(self) -> nn.Embedding | None:
        """The embedding of relative positions with a column for each head, which all layers share."""
        if self.stack.position_bias is None:
            return None
        bias = next(found for layer in self.layers for found in layer.present((str(self.stack.position_bias),)))
        assert isinstance(bias, nn.Embedding)
        return bias

    def hand_on_positions(self, layer: "Layer") -> None:
        """Gives the table of relative positions to the layer that will be the first with self-attention."""
        bias = self.position_bias
        if bias is not None:
            owner, _, name = str(self.stack.position_bias).rpartition(".")
            attention: Any = layer.find(owner)
            setattr(attention, name, bias)
            attention.has_relative_attention_bias = True


@dataclass(frozen=True)
class Layer:
    """The parts of one transformer layer that can be cut."""

    side: Side
    index: int
    module: nn.Module

    def find(self, path: str) -> nn.Module:
        """A part of the layer."""
        return self.module.get_submodule(path)

    def present(self, paths: tuple[str, ...]) -> tuple[nn.Module, ...]:
        """Those of the parts that this layer has."""
        known = {name: part for name, part in self.module.named_modules() if not isinstance(part, Absent)}
        return tuple(known[path] for path in paths if path in known)

    @property
    def attentions(self) -> list["LiveAttention"]:
        """Self-attention where it was not dropped, and in a decoder that reads an encoder cross-attention."""
        found = [LiveAttention(self, attention) for attention in self.side.stack.attentions]
        return [attention for attention in found if self.present((attention.paths.output,))]

    @property
    def self_attention(self) -> "LiveAttention | None":
        """The first attention of every layer; None where it was dropped."""
        first = self.side.stack.attentions[0]
        return next((attention for attention in self.attentions if attention.paths is first), None)

    @property
    def ffn_in(self) -> tuple[nn.Module, ...]:
        """First projections of the feed-forward part; none where it was dropped."""
        return self.present(self.side.stack.ffn_in)

    @property
    def ffn_out(self) -> nn.Module:
        """Its last projection, of a layer that has one."""
        return self.find(self.side.stack.ffn_out)

    def norms(self, hidden: int) -> Iterator[nn.Module]:
        """Normalisations of the residual stream."""
        for name, module in self.module.named_modules():
            weight = getattr(module, "weight", None)
            of_a_head = name.rpartition(".")[2] in HEAD_NORMS
            if isinstance(weight, Tensor) and weight.shape == (hidden,) and not of_a_head:
                yield module


@dataclass(frozen=True)
class LiveAttention:
    """The projections of one attention."""

    layer: Layer
    paths: Attention

    @property
    def module(self) -> Any:
        """What holds the counts of heads."""
        return self.layer.find(self.paths.module)

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        """Projections whose rows belong to heads."""
        return self.layer.present(self.paths.inputs)

    @property
    def output(self) -> nn.Module:
        """The projection whose columns belong to heads."""
        return self.layer.find(self.paths.output)
