"""Tell by name which linear layers of a model belong to attention, and which end a feed-forward network.

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


def last_part(name: str) -> str:
    """Return the last part of a module's name."""
    return name.rsplit(".", 1)[-1]


def ends_with(module: str, name: str) -> bool:
    """Return whether a module has this name, or a full name that ends with it after a dot."""
    return module == name or module.endswith(f".{name}")


def suffixes(modules: Iterable[str]) -> list[str]:
    """Return the last parts of the modules' names, each once, in their order."""
    return list(dict.fromkeys(map(last_part, modules)))


def has_experts(names: Iterable[str]) -> bool:
    """Return whether a model is a mixture of experts, by the names of its weights."""
    return any(EXPERTS.intersection(name.split(".")) for name in names)


def list_attention(modules: Iterable[str]) -> list[str]:
    """List the ends of the names of the layers of attention, for example q_proj or attn.dense."""
    modules = list(modules)
    inside = [name for name in modules if _is_attention(name)]
    elsewhere = set(suffixes(name for name in modules if not _is_attention(name)))
    return list(
        dict.fromkeys(".".join(name.split(".")[-2 if name.split(".")[-1] in elsewhere else -1 :]) for name in inside)
    )


def list_keys_and_values(modules: Iterable[str]) -> list[str]:
    """List the last parts of the names of the layers that compute keys and values."""
    return _list(modules, FUSED | KEYS | VALUES | LATENT)


def list_queries_and_values(modules: Iterable[str]) -> list[str]:
    """List the last parts of the names of the layers that compute queries and values."""
    return _list(modules, FUSED | QUERIES | VALUES | LATENT)


def list_feedforward_outputs(modules: Iterable[str]) -> list[str]:
    """List the suffixes of names of layers that end a feed-forward network, such as down_proj or mlp.c_proj."""
    outputs: dict[str, None] = {}
    for name in modules:
        *parents, last = name.split(".")
        if EXPERTS.intersection(parents):
            continue
        if last in OUTPUTS:
            outputs[last] = None
        elif last in AMBIGUOUS_OUTPUTS and parents and parents[-1] in FEED_FORWARD:
            outputs[f"{parents[-1]}.{last}"] = None
    return list(outputs)


def _is_attention(module: str) -> bool:
    """Return whether attention contains the module: self_attn, attn, attention or self_attention."""
    return any(parent.endswith(("attn", "attention")) for parent in module.split(".")[:-1])


def _list(modules: Iterable[str], names: frozenset[str]) -> list[str]:
    return [suffix for suffix in suffixes(modules) if suffix in names]
