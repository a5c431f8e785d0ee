"""Encoder-decoders: a text in, another text out."""

from service.catalog.family import Family
from service.catalog.keys import COMMON, GENERATION, words

TASKS = ("translation",)
_BART = (
    COMMON
    | GENERATION
    | words(
        """d_model encoder_layers encoder_attention_heads encoder_ffn_dim encoder_layerdrop decoder_layers
        decoder_attention_heads decoder_ffn_dim decoder_layerdrop max_position_embeddings activation_function
        activation_dropout attention_dropout dropout classifier_dropout init_std scale_embedding"""
    )
)


def _bart(model_type: str, architectures: dict[str, str | None], keys: str = "") -> Family:
    """A family whose two stacks have sizes of their own."""
    return Family(
        model_type,
        architectures,
        TASKS,
        layers="encoder_layers",
        heads="encoder_attention_heads",
        ffn="encoder_ffn_dim",
        hidden="d_model",
        decoder_layers="decoder_layers",
        decoder_heads="decoder_attention_heads",
        decoder_ffn="decoder_ffn_dim",
        defaults={"decoder_vocab_size": lambda config: int(config["vocab_size"])} if keys else {},
        config_keys=_BART | words(keys),
    )


MARIAN = _bart(
    "marian",
    {"MarianModel": None, "MarianMTModel": "translation"},
    "decoder_vocab_size share_encoder_decoder_embeddings",
)
BART = _bart("bart", {"BartModel": None, "BartForConditionalGeneration": "translation"})
T5 = Family(
    "t5",
    {"T5Model": None, "T5ForConditionalGeneration": "translation"},
    TASKS,
    layers="num_layers",
    heads="num_heads",
    ffn="d_ff",
    hidden="d_model",
    positions=None,
    decoder_layers="num_decoder_layers",
    decoder_heads="num_heads",
    decoder_ffn="d_ff",
    head_width="d_kv",
    defaults={
        "num_decoder_layers": lambda config: int(config["num_layers"]),
        "d_kv": lambda _: 64,
        "relative_attention_num_buckets": lambda _: 32,
    },
    config_keys=COMMON
    | GENERATION
    | words(
        """d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets
        relative_attention_max_distance dropout_rate layer_norm_epsilon initializer_factor feed_forward_proj
        dense_act_fn is_gated_act scale_decoder_outputs classifier_dropout"""
    ),
    stock_structures=("attention_heads", "ffn_neurons", "layers", "hidden_size", "vocabulary", "weights"),
    one_size=("attention_heads", "ffn_neurons"),
)
