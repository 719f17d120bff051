"""Derive the architectures of Llama, and of models that differ from it in a few points."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune_api.estimate.modules import Architecture, Attention, Module
from finetune_api.estimate.shapes import Config, embedding, flag, head, linear, rms, size, size_or


@dataclass(frozen=True)
class _Llama:
    """How an architecture differs from Llama (transformers/models/*/configuration_*.py and modeling_*.py)."""

    head_dim: int | None = None
    key_value_heads: int | None = None
    tied: bool = False
    qkv_bias: bool | None = None
    """Bias of queries, keys and values. None: all four projections follow ``attention_bias``."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: Literal["none", "head", "whole"] = "none"
    fused: bool = False
    quadratic: bool = False


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
LLAMAS = {
    "llama": _Llama(),
    "granite": _Llama(),
    "mistral": _Llama(key_value_heads=8),
    "smollm3": _Llama(key_value_heads=4, tied=True),
    "qwen2": _Llama(key_value_heads=32, qkv_bias=True),
    "qwen3": _Llama(key_value_heads=32, head_dim=128, qk_norm="head"),
    "olmo2": _Llama(norms=("post_attention_layernorm", "post_feedforward_layernorm"), qk_norm="whole"),
    "phi3": _Llama(fused=True),
    "gemma": _Llama(key_value_heads=16, head_dim=256, tied=True),
    "gemma2": _Llama(
        key_value_heads=4,
        head_dim=256,
        tied=True,
        norms=_GEMMA_NORMS,
        quadratic=True,
    ),
    "gemma3_text": _Llama(
        key_value_heads=4,
        head_dim=256,
        tied=True,
        norms=_GEMMA_NORMS,
        qk_norm="head",
    ),
}


def llama(config: Config) -> Architecture:
    """Return an architecture like Llama's.

    It has RMSNorm, rotary positions, grouped queries, and a gated feed-forward network.
    """
    kind = LLAMAS[config["model_type"]]
    hidden, inner = size(config, "hidden_size"), size(config, "intermediate_size")
    heads = size(config, "num_attention_heads")
    attention = Attention(
        heads,
        size_or(config, kind.key_value_heads or heads, "num_key_value_heads"),
        size_or(config, kind.head_dim or hidden // heads, "head_dim"),
        kind.quadratic,
    )
    layers, vocabulary = size(config, "num_hidden_layers"), size(config, "vocab_size")
    modules = [embedding("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        modules += _llama_layer(config, kind, f"model.layers.{number}.", hidden, inner, attention)
    tied = flag(config, "tie_word_embeddings", kind.tied)
    modules += [rms("model.norm", hidden), head("lm_head", hidden, vocabulary, tied)]
    return Architecture(
        model_type=config["model_type"],
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        attention=attention,
        modules=tuple(modules),
        layer_prefix="model.layers.",
        activation="gated",
        prefix_heads=attention.key_value_heads,
        prefix_width=attention.key_value,
    )


def _llama_layer(
    config: Config, kind: _Llama, prefix: str, hidden: int, inner: int, attention: Attention
) -> Iterator[Module]:
    query, key_value = attention.query, attention.key_value
    bias = flag(config, "attention_bias", False)
    qkv_bias = bias if kind.qkv_bias is None else kind.qkv_bias
    mlp_bias = flag(config, "mlp_bias", False)
    if kind.fused:
        yield linear(f"{prefix}self_attn.qkv_proj", hidden, query + 2 * key_value)
    else:
        yield linear(f"{prefix}self_attn.q_proj", hidden, query, qkv_bias)
        yield linear(f"{prefix}self_attn.k_proj", hidden, key_value, qkv_bias)
        yield linear(f"{prefix}self_attn.v_proj", hidden, key_value, qkv_bias)
    yield linear(f"{prefix}self_attn.o_proj", query, hidden, bias)
    if kind.qk_norm != "none":
        per_head = kind.qk_norm == "head"
        yield rms(f"{prefix}self_attn.q_norm", attention.head_dim if per_head else query)
        yield rms(f"{prefix}self_attn.k_norm", attention.head_dim if per_head else key_value)
    if kind.fused:
        yield linear(f"{prefix}mlp.gate_up_proj", hidden, 2 * inner)
    else:
        yield linear(f"{prefix}mlp.gate_proj", hidden, inner, mlp_bias)
        yield linear(f"{prefix}mlp.up_proj", hidden, inner, mlp_bias)
    yield linear(f"{prefix}mlp.down_proj", inner, hidden, mlp_bias)
    for norm in kind.norms:
        yield rms(prefix + norm, hidden)
