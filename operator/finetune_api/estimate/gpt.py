"""Derive the architectures without a gate in their feed-forward network: GPT-2 and its successors."""

from typing import Literal

from finetune_api.estimate.modules import Architecture, Attention, Module
from finetune_api.estimate.shapes import Config, embedding, flag, head, linear, norm, size, size_or


def gpt2(config: Config) -> Architecture:
    """Return GPT-2's architecture: learned positions, and ``Conv1D`` for every linear layer."""
    hidden, layers = size(config, "n_embd", "hidden_size"), size(config, "n_layer", "num_hidden_layers")
    inner = size_or(config, 4 * hidden, "n_inner")
    vocabulary, positions = size(config, "vocab_size"), size(config, "n_positions", "max_position_embeddings")
    modules = [embedding("transformer.wte", vocabulary, hidden), embedding("transformer.wpe", positions, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            norm(f"{prefix}ln_1", hidden),
            Module(f"{prefix}attn.c_attn", "conv1d", hidden, 3 * hidden, bias=True),
            Module(f"{prefix}attn.c_proj", "conv1d", hidden, hidden, bias=True),
            norm(f"{prefix}ln_2", hidden),
            Module(f"{prefix}mlp.c_fc", "conv1d", hidden, inner, bias=True),
            Module(f"{prefix}mlp.c_proj", "conv1d", inner, hidden, bias=True),
        ]
    tied = flag(config, "tie_word_embeddings", True)
    modules += [norm("transformer.ln_f", hidden), head("lm_head", hidden, vocabulary, tied)]
    heads = size(config, "n_head", "num_attention_heads")
    return _build_ungated(config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu")


def gpt_neo(config: Config) -> Architecture:
    """Return GPT-Neo's architecture: learned positions, and queries, keys and values without bias."""
    hidden, layers = size(config, "hidden_size"), size(config, "num_layers", "num_hidden_layers")
    inner = size_or(config, 4 * hidden, "intermediate_size")
    vocabulary, positions = size(config, "vocab_size"), size(config, "max_position_embeddings")
    modules = [embedding("transformer.wte", vocabulary, hidden), embedding("transformer.wpe", positions, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            norm(f"{prefix}ln_1", hidden),
            *(linear(f"{prefix}attn.attention.{name}_proj", hidden, hidden) for name in "kvq"),
            linear(f"{prefix}attn.attention.out_proj", hidden, hidden, bias=True),
            norm(f"{prefix}ln_2", hidden),
            linear(f"{prefix}mlp.c_fc", hidden, inner, bias=True),
            linear(f"{prefix}mlp.c_proj", inner, hidden, bias=True),
        ]
    tied = flag(config, "tie_word_embeddings", True)
    modules += [norm("transformer.ln_f", hidden), head("lm_head", hidden, vocabulary, tied)]
    heads = size(config, "num_heads", "num_attention_heads")
    return _build_ungated(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu", quadratic=True
    )


def gptj(config: Config) -> Architecture:
    """Return GPT-J's architecture: attention and feed-forward network in parallel after one norm.

    The output head has a bias.
    """
    hidden, layers = size(config, "n_embd", "hidden_size"), size(config, "n_layer", "num_hidden_layers")
    inner, vocabulary = size_or(config, 4 * hidden, "n_inner"), size(config, "vocab_size")
    modules = [embedding("transformer.wte", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            norm(f"{prefix}ln_1", hidden),
            *(linear(f"{prefix}attn.{name}_proj", hidden, hidden) for name in ("k", "v", "q", "out")),
            linear(f"{prefix}mlp.fc_in", hidden, inner, bias=True),
            linear(f"{prefix}mlp.fc_out", inner, hidden, bias=True),
        ]
    tied = flag(config, "tie_word_embeddings", False)
    modules += [norm("transformer.ln_f", hidden), head("lm_head", hidden, vocabulary, tied, bias=True)]
    heads = size(config, "n_head", "num_attention_heads")
    return _build_ungated(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "tanhGelu", quadratic=True
    )


def gpt_neox(config: Config) -> Architecture:
    """Return the architecture of GPT-NeoX and Pythia: fused queries, keys and values."""
    hidden, layers = size(config, "hidden_size"), size(config, "num_hidden_layers")
    inner, vocabulary = size(config, "intermediate_size"), size(config, "vocab_size")
    bias = flag(config, "attention_bias", True)
    modules = [embedding("gpt_neox.embed_in", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"gpt_neox.layers.{number}."
        modules += [
            norm(f"{prefix}input_layernorm", hidden),
            norm(f"{prefix}post_attention_layernorm", hidden),
            linear(f"{prefix}attention.query_key_value", hidden, 3 * hidden, bias),
            linear(f"{prefix}attention.dense", hidden, hidden, bias),
            linear(f"{prefix}mlp.dense_h_to_4h", hidden, inner, bias=True),
            linear(f"{prefix}mlp.dense_4h_to_h", inner, hidden, bias=True),
        ]
    tied = flag(config, "tie_word_embeddings", False)
    modules += [norm("gpt_neox.final_layer_norm", hidden), head("lm_head", hidden, vocabulary, tied)]
    heads = size(config, "num_attention_heads")
    return _build_ungated(config, hidden, layers, inner, vocabulary, heads, modules, "gpt_neox.layers.", "gelu")


def phi(config: Config) -> Architecture:
    """Return the architecture of Phi-1 and Phi-2: attention and feed-forward in parallel after one norm.

    All linear layers have a bias.
    """
    hidden, layers = size(config, "hidden_size"), size(config, "num_hidden_layers")
    inner, vocabulary = size(config, "intermediate_size"), size(config, "vocab_size")
    heads = size(config, "num_attention_heads")
    key_value_heads = size_or(config, heads, "num_key_value_heads")
    head_dim = hidden // heads
    modules = [embedding("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"model.layers.{number}."
        modules += [
            linear(f"{prefix}self_attn.q_proj", hidden, hidden, bias=True),
            linear(f"{prefix}self_attn.k_proj", hidden, key_value_heads * head_dim, bias=True),
            linear(f"{prefix}self_attn.v_proj", hidden, key_value_heads * head_dim, bias=True),
            linear(f"{prefix}self_attn.dense", hidden, hidden, bias=True),
            linear(f"{prefix}mlp.fc1", hidden, inner, bias=True),
            linear(f"{prefix}mlp.fc2", inner, hidden, bias=True),
            norm(f"{prefix}input_layernorm", hidden),
        ]
        if flag(config, "qk_layernorm", False):
            modules += [
                norm(f"{prefix}self_attn.q_layernorm", head_dim),
                norm(f"{prefix}self_attn.k_layernorm", head_dim),
            ]
    tied = flag(config, "tie_word_embeddings", False)
    modules += [norm("model.final_layernorm", hidden), head("lm_head", hidden, vocabulary, tied, bias=True)]
    return _build_ungated(
        config,
        hidden,
        layers,
        inner,
        vocabulary,
        heads,
        modules,
        "model.layers.",
        "tanhGelu",
        key_value_heads=key_value_heads,
        grouped=True,
    )


def opt(config: Config) -> Architecture:
    """Return OPT's architecture: learned positions, and projections if the embeddings are narrower.

    The table of positions has two rows more than ``max_position_embeddings``.
    """
    hidden, layers = size(config, "hidden_size"), size(config, "num_hidden_layers")
    inner, vocabulary = size(config, "ffn_dim"), size(config, "vocab_size")
    width = size_or(config, hidden, "word_embed_proj_dim")
    bias = flag(config, "enable_bias", True)
    modules = [
        embedding("model.decoder.embed_tokens", vocabulary, width),
        embedding("model.decoder.embed_positions", size(config, "max_position_embeddings") + 2, hidden),
    ]
    if width != hidden:
        modules += [
            linear("model.decoder.project_out", hidden, width),
            linear("model.decoder.project_in", width, hidden),
        ]
    if flag(config, "do_layer_norm_before", True) and not flag(config, "_remove_final_layer_norm", False):
        modules.append(norm("model.decoder.final_layer_norm", hidden))
    for number in range(layers):
        prefix = f"model.decoder.layers.{number}."
        modules += [
            *(linear(f"{prefix}self_attn.{name}_proj", hidden, hidden, bias) for name in ("k", "v", "q", "out")),
            norm(f"{prefix}self_attn_layer_norm", hidden),
            linear(f"{prefix}fc1", hidden, inner, bias),
            linear(f"{prefix}fc2", inner, hidden, bias),
            norm(f"{prefix}final_layer_norm", hidden),
        ]
    modules.append(head("lm_head", width, vocabulary, flag(config, "tie_word_embeddings", True)))
    heads = size(config, "num_attention_heads")
    return _build_ungated(config, hidden, layers, inner, vocabulary, heads, modules, "model.decoder.layers.", "relu")


def falcon(config: Config) -> Architecture:
    """Return Falcon's architecture.

    Keys and values have one group (7B), several groups (40B), or one for each head (RW).
    """
    hidden, layers = size(config, "hidden_size"), size(config, "num_hidden_layers", "n_layer")
    heads, vocabulary = size(config, "num_attention_heads", "n_head"), size(config, "vocab_size")
    inner = size_or(config, 4 * hidden, "ffn_hidden_size")
    new = flag(config, "new_decoder_architecture", False)
    multi_query, bias = flag(config, "multi_query", True), flag(config, "bias", False)
    groups = size_or(config, heads, "num_kv_heads", "n_head_kv") if new else 1 if multi_query else heads
    head_dim = hidden // heads
    modules = [embedding("transformer.word_embeddings", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            linear(f"{prefix}self_attention.query_key_value", hidden, (heads + 2 * groups) * head_dim, bias),
            linear(f"{prefix}self_attention.dense", hidden, hidden, bias),
            linear(f"{prefix}mlp.dense_h_to_4h", hidden, inner, bias),
            linear(f"{prefix}mlp.dense_4h_to_h", inner, hidden, bias),
            *(norm(prefix + name, hidden) for name in _falcon_norms(config, new)),
        ]
    tied = flag(config, "tie_word_embeddings", True)
    modules += [norm("transformer.ln_f", hidden), head("lm_head", hidden, vocabulary, tied)]
    return _build_ungated(
        config, hidden, layers, inner, vocabulary, heads, modules, "transformer.h.", "gelu", key_value_heads=groups
    )


def _falcon_norms(config: Config, new: bool) -> list[str]:
    if not flag(config, "parallel_attn", True):
        return ["post_attention_layernorm", "input_layernorm"]
    return (
        ["ln_attn", "ln_mlp"]
        if size_or(config, 2 if new else 1, "num_ln_in_parallel_attn") == 2
        else ["input_layernorm"]
    )


def bloom(config: Config) -> Architecture:
    """Return BLOOM's architecture: ALiBi positions, and a norm after the embeddings."""
    hidden, layers = size(config, "hidden_size", "n_embed"), size(config, "n_layer", "num_hidden_layers")
    heads, vocabulary = size(config, "n_head", "num_attention_heads"), size(config, "vocab_size")
    modules = [
        embedding("transformer.word_embeddings", vocabulary, hidden),
        norm("transformer.word_embeddings_layernorm", hidden),
    ]
    for number in range(layers):
        prefix = f"transformer.h.{number}."
        modules += [
            norm(f"{prefix}input_layernorm", hidden),
            linear(f"{prefix}self_attention.query_key_value", hidden, 3 * hidden, bias=True),
            linear(f"{prefix}self_attention.dense", hidden, hidden, bias=True),
            norm(f"{prefix}post_attention_layernorm", hidden),
            linear(f"{prefix}mlp.dense_h_to_4h", hidden, 4 * hidden, bias=True),
            linear(f"{prefix}mlp.dense_4h_to_h", 4 * hidden, hidden, bias=True),
        ]
    tied = flag(config, "tie_word_embeddings", True)
    modules += [norm("transformer.ln_f", hidden), head("lm_head", hidden, vocabulary, tied)]
    return _build_ungated(
        config, hidden, layers, 4 * hidden, vocabulary, heads, modules, "transformer.h.", "gelu", quadratic=True
    )


def _build_ungated(
    config: Config,
    hidden: int,
    layers: int,
    inner: int,
    vocabulary: int,
    heads: int,
    modules: list[Module],
    layer_prefix: str,
    activation: Literal["gelu", "relu", "tanhGelu"],
    *,
    key_value_heads: int | None = None,
    grouped: bool = False,
    quadratic: bool = False,
) -> Architecture:
    """Return an architecture without a gate.

    Args:
        config: The model's config.json.
        hidden: Width of the hidden states.
        layers: Number of layers.
        inner: Width of the feed-forward network.
        vocabulary: Number of tokens in the vocabulary.
        heads: Number of attention heads.
        modules: All modules, embeddings first, output head last.
        layer_prefix: The modules of layer ``n`` are named ``{layer_prefix}{n}.…``.
        activation: Activation of the feed-forward network.
        key_value_heads: Heads of keys and values. None: as many as ``heads``.
        grouped: Whether config.json has ``num_key_value_heads``. PEFT's prefix is then as wide as these heads.
        quadratic: Whether the scores of all pairs of tokens are kept.
    """
    attention = Attention(heads, key_value_heads or heads, hidden // heads, quadratic)
    return Architecture(
        model_type=config["model_type"],
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        attention=attention,
        modules=tuple(modules),
        layer_prefix=layer_prefix,
        activation=activation,
        prefix_heads=attention.key_value_heads if grouped else heads,
        prefix_width=attention.key_value if grouped else hidden,
    )
