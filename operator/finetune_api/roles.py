"""Tell by their names which linear layers of a model compute keys and values, and which end a feed-forward network.

The names are those of the models in transformers. They choose the default modules of architectures that PEFT does not
know.
"""

from collections.abc import Iterable

FUSED = frozenset({
    "qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack", "qkv", "att_proj", "qkv_matmul",
})  # fmt: skip
"""Layers that compute queries, keys and values at once."""
QUERIES = frozenset({"q_proj", "query", "wq", "q_lin", "q_b_proj"})
KEYS = frozenset({"k_proj", "key", "wk", "k_lin"})
VALUES = frozenset({"v_proj", "value", "wv", "v_lin"})
LATENT = frozenset({"kv_b_proj", "kv_proj"})
"""Layers that compute keys and values at once, from a latent vector."""
OUTPUTS = frozenset({"down_proj", "fc2", "fc_out", "dense_4h_to_h", "ff_out", "linear_2", "w2", "out_lin", "lin2"})
"""Layers that end a feed-forward network, whatever contains them."""
AMBIGUOUS_OUTPUTS = frozenset({"c_proj", "wo", "dense", "output", "proj", "output_linear", "out_proj"})
"""Layers that end a feed-forward network if one contains them."""
FEED_FORWARD = frozenset({"mlp", "ffn", "feed_forward", "ff", "shared_mlp", "shared_expert", "shared_experts"})
EXPERTS = frozenset({"experts"})
"""Transformers holds their matrices as one parameter, not as linear layers."""


def suffixes(modules: Iterable[str]) -> list[str]:
    """Return the last parts of the modules' names, each once, in their order."""
    return list(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))


def list_keys_and_values(modules: Iterable[str]) -> list[str]:
    """List the last parts of the names of the layers that compute keys and values."""
    return _list(modules, FUSED | KEYS | VALUES | LATENT)


def list_queries_and_values(modules: Iterable[str]) -> list[str]:
    """List the last parts of the names of the layers that compute queries and values."""
    return _list(modules, FUSED | QUERIES | VALUES | LATENT)


def list_feedforward_outputs(modules: Iterable[str]) -> list[str]:
    """List the ends of the names of the layers that end a feed-forward network, for example down_proj or mlp.c_proj."""
    found: dict[str, None] = {}
    for name in modules:
        *parents, last = name.split(".")
        if EXPERTS.intersection(parents):
            continue
        if last in OUTPUTS:
            found[last] = None
        elif last in AMBIGUOUS_OUTPUTS and parents and parents[-1] in FEED_FORWARD:
            found[f"{parents[-1]}.{last}"] = None
    return list(found)


def _list(modules: Iterable[str], wanted: frozenset[str]) -> list[str]:
    return [suffix for suffix in suffixes(modules) if suffix in wanted]
