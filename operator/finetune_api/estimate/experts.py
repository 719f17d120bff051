"""Derive the architectures of mixtures of experts, as transformers 5 builds them.

The experts of a layer are parameters of one module. PEFT's ``all-linear`` and bitsandbytes find no linear layer in
them, so that they are neither adapted nor quantised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune_api.estimate.modules import Architecture, Attention, Module
from finetune_api.estimate.shapes import Config, embedding, flag, head, linear, rms, size, size_or

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names of the number of experts in config.json."""


@dataclass(frozen=True)
class _Experts:
    """How a mixture of experts differs from the others (transformers/models/*/modeling_*.py)."""

    head_dim: int | None = None
    key_value_heads: int | None = None
    qkv_bias: bool | None = None
    """Bias of queries, keys and values. None: all four projections follow ``attention_bias``."""
    attention_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    block: str = "mlp"
    """Name of the feed-forward network."""
    router: str = "gate"
    experts_bias: bool = False
    """Whether router and experts have biases."""
    shared: str = ""
    """Name of the expert that every token passes."""
    shared_gate: bool = False
    all_experts: bool = False
    """Whether transformers computes all experts for each token."""
    activation: Literal["gated", "clampedGated"] = "gated"


MIXTURES = {
    "mixtral": _Experts(key_value_heads=8),
    "qwen2_moe": _Experts(key_value_heads=16, qkv_bias=True, shared="shared_expert", shared_gate=True),
    "qwen3_moe": _Experts(key_value_heads=4, head_dim=128, qk_norm=True),
    "gpt_oss": _Experts(
        key_value_heads=8,
        head_dim=64,
        attention_bias=True,
        sinks=True,
        router="router",
        experts_bias=True,
        activation="clampedGated",
    ),
    "llama4_text": _Experts(
        key_value_heads=8,
        head_dim=128,
        block="feed_forward",
        router="router",
        shared="shared_expert",
        all_experts=True,
    ),
    "deepseek_v3": _Experts(shared="shared_experts"),
}


def mixture(config: Config) -> Architecture:
    """Return the architecture of a mixture of experts."""
    kind = MIXTURES[config["model_type"]]
    hidden, layers, vocabulary = (size(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    experts, inner = size(config, *EXPERT_COUNTS), size(config, "moe_intermediate_size", "intermediate_size")
    used = experts if kind.all_experts else size(config, "num_experts_per_tok")
    shared = _shared_width(config, kind, inner)
    attention = _attention(config, kind, hidden)
    modules = [embedding("model.embed_tokens", vocabulary, hidden)]
    for number in range(layers):
        prefix = f"model.layers.{number}."
        modules += _attention_modules(config, kind, f"{prefix}self_attn.", hidden, attention)
        if _is_sparse(config, number):
            modules += _sparse(kind, f"{prefix}{kind.block}.", hidden, inner, shared, experts)
        else:
            modules += _gated(
                f"{prefix}{kind.block}.", hidden, size(config, "intermediate_size_mlp", "intermediate_size")
            )
        modules += [rms(f"{prefix}input_layernorm", hidden), rms(f"{prefix}post_attention_layernorm", hidden)]
    tied = flag(config, "tie_word_embeddings", False)
    modules += [rms("model.norm", hidden), head("lm_head", hidden, vocabulary, tied)]
    return Architecture(
        model_type=config["model_type"],
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=used * inner + shared,
        attention=attention,
        modules=tuple(modules),
        layer_prefix="model.layers.",
        activation=kind.activation,
        prefix_heads=0 if config["model_type"] == "deepseek_v3" else attention.key_value_heads,
        prefix_width=attention.key_value,
        experts=experts,
        experts_per_token=used,
    )


def _attention(config: Config, kind: _Experts, hidden: int) -> Attention:
    heads = size(config, "num_attention_heads")
    if config["model_type"] == "deepseek_v3":
        plain, value = size(config, "qk_nope_head_dim"), size(config, "v_head_dim")
        width = plain + size(config, "qk_rope_head_dim")
        return Attention(heads, heads, width, latent=2 * heads * (3 * width + plain + value))
    return Attention(
        heads,
        size_or(config, kind.key_value_heads or heads, "num_key_value_heads"),
        size_or(config, kind.head_dim or hidden // heads, "head_dim"),
    )


def _attention_modules(
    config: Config, kind: _Experts, prefix: str, hidden: int, attention: Attention
) -> Iterator[Module]:
    if config["model_type"] == "deepseek_v3":
        yield from _latent_attention(config, prefix, hidden, attention)
        return
    bias = flag(config, "attention_bias", kind.attention_bias)
    qkv_bias = bias if kind.qkv_bias is None else flag(config, "qkv_bias", kind.qkv_bias)
    yield linear(f"{prefix}q_proj", hidden, attention.query, qkv_bias)
    yield linear(f"{prefix}k_proj", hidden, attention.key_value, qkv_bias)
    yield linear(f"{prefix}v_proj", hidden, attention.key_value, qkv_bias)
    yield linear(f"{prefix}o_proj", attention.query, hidden, bias)
    if kind.qk_norm:
        yield rms(f"{prefix}q_norm", attention.head_dim)
        yield rms(f"{prefix}k_norm", attention.head_dim)
    if kind.sinks:
        yield Module(f"{prefix}sinks", "parameter", 1, attention.heads)


def _latent_attention(config: Config, prefix: str, hidden: int, attention: Attention) -> Iterator[Module]:
    """Yield DeepSeek's attention: keys and values, and mostly the queries, come from a narrow latent vector."""
    rope, plain, value = (size(config, name) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    bias, latent = flag(config, "attention_bias", False), size(config, "kv_lora_rank")
    if config.get("q_lora_rank") is None:
        yield linear(f"{prefix}q_proj", hidden, attention.query)
    else:
        rank = size(config, "q_lora_rank")
        yield linear(f"{prefix}q_a_proj", hidden, rank, bias)
        yield rms(f"{prefix}q_a_layernorm", rank)
        yield linear(f"{prefix}q_b_proj", rank, attention.query)
    yield linear(f"{prefix}kv_a_proj_with_mqa", hidden, latent + rope, bias)
    yield rms(f"{prefix}kv_a_layernorm", latent)
    yield linear(f"{prefix}kv_b_proj", latent, attention.heads * (plain + value))
    yield linear(f"{prefix}o_proj", attention.heads * value, hidden, bias)


def _is_sparse(config: Config, number: int) -> bool:
    """Return whether the layer with this number has experts."""
    match config["model_type"]:
        case "deepseek_v3":
            return number >= (config.get("first_k_dense_replace") or 0)
        case "llama4_text":
            step = size_or(config, 1, "interleave_moe_layer_step")
            layers = config.get("moe_layers")
            return (number + 1) % step == 0 if layers is None else number in layers
        case "qwen2_moe" | "qwen3_moe":
            step = size_or(config, 1, "decoder_sparse_step")
            return number not in (config.get("mlp_only_layers") or ()) and (number + 1) % step == 0
    return True


def _shared_width(config: Config, kind: _Experts, inner: int) -> int:
    match kind.shared:
        case "shared_experts":
            return inner * size(config, "n_shared_experts")
        case "shared_expert":
            return size_or(config, inner, "shared_expert_intermediate_size")
    return 0


def _sparse(kind: _Experts, prefix: str, hidden: int, inner: int, shared: int, experts: int) -> Iterator[Module]:
    yield Module(f"{prefix}experts.gate_up_proj", "parameter", experts * hidden, 2 * inner)
    yield Module(f"{prefix}experts.down_proj", "parameter", experts * inner, hidden)
    if kind.experts_bias:
        yield Module(f"{prefix}experts.gate_up_proj_bias", "parameter", experts, 2 * inner)
        yield Module(f"{prefix}experts.down_proj_bias", "parameter", experts, hidden)
    yield Module(prefix + kind.router, "router", hidden, experts, kind.experts_bias)
    if kind.shared:
        yield from _gated(f"{prefix}{kind.shared}.", hidden, shared)
    if kind.shared_gate:
        yield linear(f"{prefix}shared_expert_gate", hidden, 1)


def _gated(prefix: str, hidden: int, inner: int) -> Iterator[Module]:
    yield linear(f"{prefix}gate_proj", hidden, inner)
    yield linear(f"{prefix}up_proj", hidden, inner)
    yield linear(f"{prefix}down_proj", inner, hidden)
