"""Sizes of a live network, and keeping its config and its modules' own numbers true to them."""

from typing import Any

from transformers import PreTrainedModel

from workers.engine.families import family_of
from workers.engine.families.family import LiveAttention, Side
from workers.engine.modeling_secateur import differences, stock_twin
from workers.engine.slicing import columns_of, rows_of


def hidden_size_of(network: PreTrainedModel) -> int:
    """Width of the residual stream."""
    return next(columns_of(layer.ffn_in[0]) for layer in family_of(network).layers(network) if layer.ffn_in)


def head_width_of(side: Side) -> int:
    """Features of one attention head of a stack: by the config, where it says so, else fixed by its uncut sizes."""
    facts, config = side.family.facts, side.network.config
    width = getattr(config, facts.head_width, None) if facts.head_width else None
    if width is not None:
        return int(width)
    return int(getattr(config, facts.hidden)) // int(getattr(config, side.heads_key))


def heads_per_unit(network: PreTrainedModel) -> int:
    """Query heads that share a key-value head, which are cut together; 1 where every head has its own."""
    facts, config = family_of(network).facts, network.config
    if facts.kv_heads is None:
        return 1
    return int(getattr(config, facts.heads)) // int(getattr(config, facts.kv_heads))


def head_units(attention: LiveAttention) -> int:
    """Units of an attention: its heads, or its key-value heads with the query heads of each."""
    side = attention.layer.side
    return columns_of(attention.output) // (head_width_of(side) * heads_per_unit(side.network))


def structure_of(network: PreTrainedModel) -> dict[str, Any]:
    """Sizes layer by layer, as the API shows them: `layers, hidden_size, attention_heads, ffn_width, vocabulary`.

    Of an encoder-decoder these are the encoder's, `decoder_…` the decoder's; `key_value_heads` where they are shared.
    A layer that lost its self-attention has no heads, one that lost its feed-forward part a width of 0.
    """
    family = family_of(network)
    sizes: dict[str, Any] = {"hidden_size": hidden_size_of(network), "vocabulary": int(network.config.vocab_size)}
    for side in family.sides(network):
        prefix, width = "decoder_" if side.second else "", head_width_of(side)
        sizes[f"{prefix}layers"] = layers_of(side)
        attentions = [layer.self_attention for layer in side.layers]
        heads = [0 if attention is None else columns_of(attention.output) // width for attention in attentions]
        sizes[f"{prefix}attention_heads"] = _spread(side, heads)
        widths = [rows_of(layer.ffn_in[0]) if layer.ffn_in else 0 for layer in side.layers]
        sizes[f"{prefix}ffn_width"] = _spread(side, widths)
    if family.facts.kv_heads is not None:
        shared = heads_per_unit(network)
        sizes["key_value_heads"] = [heads // shared for heads in sizes["attention_heads"]]
    return sizes


def layers_of(side: Side) -> int:
    """Layers that a stack runs: of shared ones, how often they run."""
    if side.family.shares_layers:
        return int(getattr(side.network.config, side.layers_key))
    return len(side.modules)


def _spread(side: Side, sizes: list[int]) -> list[int]:
    return sizes * layers_of(side) if side.family.shares_layers else sizes


def refresh(network: PreTrainedModel) -> None:
    """Keeps the network's own numbers true to its weights after a cut: head counts, layer indices, config."""
    family = family_of(network)
    for side in family.sides(network):
        width = head_width_of(side)
        for layer in side.layers:
            for attention in layer.attentions:
                features = columns_of(attention.output)
                for name in attention.paths.counts:
                    setattr(attention.module, name, features // width)
                for name in attention.paths.widths:
                    setattr(attention.module, name, features)
        _number(side)
    uniform = _uniform_sizes(network)
    for config in _configs(network):
        for key, value in uniform.items():
            setattr(config, key, value)
        kinds = getattr(config, "layer_types", None)
        if isinstance(kinds, list):  # all layers of a supported network are of one kind
            config.layer_types = kinds[: config.num_hidden_layers]
        if hasattr(config, "pooler_hidden_size"):
            config.pooler_hidden_size = hidden_size_of(network)
    for side in family.sides(network):
        if (config := side.config) is not network.config:
            config.num_hidden_layers = layers_of(side)
        if hasattr(side.owner, "n_layers"):
            side.owner.n_layers = layers_of(side)


def _number(side: Side) -> None:
    """Numbers the attentions without gaps: caches tell how many tokens they hold by the first place alone."""
    for paths in side.stack.attentions:
        modules = [found.module for layer in side.layers for found in layer.attentions if found.paths is paths]
        for number, module in enumerate(modules):
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = number


def _configs(network: PreTrainedModel) -> list[Any]:
    """The config and the copies that the stacks of an encoder-decoder hold."""
    found = {id(network.config): network.config}
    for module in network.modules():
        config = getattr(module, "config", None)
        if config is not None:
            found[id(config)] = config
    return list(found.values())


def _uniform_sizes(network: PreTrainedModel) -> dict[str, Any]:
    """Config keys and the sizes that one number can say; what differs from layer to layer is left as it was."""
    family, shared = family_of(network), heads_per_unit(network)
    facts, sides, hidden = family.facts, family.sides(network), hidden_size_of(network)
    sizes: dict[str, Any] = {side.layers_key: layers_of(side) for side in sides}
    for key in {side.ffn_key for side in sides}:
        layers = [layer for side in sides if side.ffn_key == key for layer in side.layers]
        sizes |= _single(key, [rows_of(projection) for layer in layers for projection in layer.ffn_in])
    heads: dict[str, Any] = {}
    widths = {side.heads_key: head_width_of(side) for side in sides}
    for key in widths:
        attentions = [a for side in sides if side.heads_key == key for layer in side.layers for a in layer.attentions]
        heads |= _single(key, [columns_of(attention.output) // widths[key] for attention in attentions])
    uniform = len(heads) == len(widths)
    if facts.heads_divide_hidden:
        counts = heads.values() if uniform else [int(getattr(network.config, side.heads_key)) for side in sides]
        if any(hidden % count for count in counts):
            return sizes | {str(facts.head_width): widths[facts.heads]}
    if facts.head_width is not None:
        sizes |= {facts.hidden: hidden, facts.head_width: widths[facts.heads]}
        if uniform and facts.kv_heads is not None:
            sizes[facts.kv_heads] = heads[facts.heads] // shared
        return sizes | (heads if uniform else {})
    whole = all(count * widths[key] == hidden for key, count in heads.items())
    if uniform and whole and not family.computes_positions:
        return sizes | heads | {facts.hidden: hidden}
    return sizes


def _single(key: str, values: list[int]) -> dict[str, int]:
    return {key: values[0]} if len(set(values)) == 1 else {}


def is_stock(network: PreTrainedModel) -> bool:
    """Whether the config alone describes the network, so that plain `from_pretrained` loads it."""
    return not any(differences(network, stock_twin(network)).values())
