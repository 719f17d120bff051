"""Describe a model that has no closed form by the shapes in the headers of its weights.

Counts are exact. Activations are those of a layer with fused attention, and so a guess for an unusual architecture.
"""

import math
import re
from collections.abc import Iterator, Mapping

from finetune_api.estimate.experts import EXPERT_COUNTS
from finetune_api.estimate.modules import Architecture, Attention, Module
from finetune_api.estimate.shapes import Config, UnknownArchitectureError, embedding, head, linear, size, size_or
from finetune_api.linear import CONV1D_MODEL_TYPES, is_embedding_or_head, is_router
from finetune_api.roles import last_part

Shapes = Mapping[str, tuple[int, ...]]
TEXT_KEYS = ("text_config", "llm_config", "language_config")
_LAYER = re.compile(r"(?P<prefix>(?:.*\.)?(?:layers|h|blocks|block)\.)(?P<number>\d+)\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_EXPERT_COUNTS = (*EXPERT_COUNTS, "moe_num_experts")
_USED_EXPERTS = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")
_HEADS = ("lm_head", "embed_out", "head")
_GATES = ("gate_proj", "gate_up_proj", "w3", "linear_v", "ff_proj")
"""Last parts of the names of layers that gate a feed-forward network."""


def architecture_from_headers(config: Config, shapes: Shapes) -> Architecture:
    """Return the architecture of a causal language model, whatever its ``model_type``.

    Args:
        config: Its config.json.
        shapes: The shape of each tensor, by its name.

    Raises:
        UnknownArchitectureError: It has a matrix for each expert, so that transformers does not know it, or a size is
            missing.
    """
    if config.get("model_type") in CONV1D_MODEL_TYPES or any(_EXPERT.search(name) for name in shapes):
        raise UnknownArchitectureError(
            f"the estimate knows no closed form for model_type {config.get('model_type')!r}, and its files do not show "
            "which modules transformers makes of them"
        )
    text: Config = next((config[key] for key in TEXT_KEYS if isinstance(config.get(key), dict)), config)
    hidden, vocabulary = size(text, "hidden_size", "n_embd", "d_model"), size(text, "vocab_size")
    layers = size(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = size(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    attention = Attention(
        heads, size_or(text, heads, "num_key_value_heads"), size_or(text, hidden // heads, "head_dim")
    )
    modules, experts, used = list(_modules(shapes)), 0, 0
    intermediate = _find_intermediate(text, 4 * hidden)
    if any(_EXPERTS.search(name) for name in shapes):
        experts, used = size(text, *_EXPERT_COUNTS), size(text, *_USED_EXPERTS)
        shared = size_or(text, 0, "shared_expert_intermediate_size", "shared_intermediate_size")
        intermediate = used * size_or(text, intermediate, "moe_intermediate_size") + shared
    return Architecture(
        model_type=str(config.get("model_type")),
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        intermediate=intermediate,
        attention=attention,
        modules=tuple(_arrange(modules, vocabulary, hidden)),
        layer_prefix=_find_layers(shapes, layers),
        activation="gated" if any(_last(module) in _GATES for module in modules) else "tanhGelu",
        prefix_heads=attention.key_value_heads,
        prefix_width=attention.key_value,
        experts=experts,
        experts_per_token=used,
    )


def _find_intermediate(text: Config, default: int) -> int:
    """Return the width of the feed-forward network; the largest one where config.json lists one for each layer."""
    widths = text.get("intermediate_size")
    if isinstance(widths, list) and widths and all(isinstance(width, int) for width in widths):
        return int(max(widths))
    return size_or(text, default, "intermediate_size", "ffn_dim", "n_inner")


def _modules(shapes: Shapes) -> Iterator[Module]:
    for name, shape in shapes.items():
        module, _, last = name.rpartition(".")
        bias = f"{module}.bias" in shapes
        if last == "bias" and len(shapes.get(f"{module}.weight", ())) in (1, 2):
            continue  # counted with its weight
        if last != "weight" or len(shape) not in (1, 2):
            yield Module(name, "parameter", math.prod(shape[:-1]), shape[-1] if shape else 1)
        elif len(shape) == 1:
            yield Module(module, "layerNorm" if bias else "rmsNorm", *shape, *shape, bias)
        elif is_embedding_or_head(module) and last_part(module) not in _HEADS:
            yield embedding(module, *shape)
        elif is_router(module, shapes):
            yield Module(module, "router", shape[1], shape[0], bias)
        else:
            yield linear(module, shape[1], shape[0], bias)


def _arrange(modules: list[Module], vocabulary: int, hidden: int) -> list[Module]:
    """Put the embeddings first, and the last norm and the output head last; a head without a tensor is tied."""
    words = next((m for m in modules if m.kind == "embedding" and m.inputs == vocabulary), None)
    norm = next((m for m in reversed(modules) if m.kind.endswith("Norm") and not _LAYER.match(f"{m.name}.")), None)
    norm = norm or next((m for m in modules if m.kind.endswith("Norm")), None)
    if words is None or norm is None:
        raise UnknownArchitectureError(
            "the weights have no embeddings of the words, or no norm, that the estimate knows"
        )
    last = next((m for m in modules if _last(m) in _HEADS), head("lm_head", hidden, vocabulary, tied=True))
    return [words, *(m for m in modules if m not in (words, norm, last)), norm, last]


def _find_layers(shapes: Shapes, layers: int) -> str:
    numbers: dict[str, set[int]] = {}
    for name in shapes:
        if match := _LAYER.match(name):
            numbers.setdefault(match["prefix"], set()).add(int(match["number"]))
    prefixes = [prefix for prefix, present in numbers.items() if present >= set(range(layers))]
    if not prefixes:
        raise UnknownArchitectureError(f"the weights do not have the {layers} layers of config.json under one name")
    return next((prefix for prefix in prefixes if "language" in prefix or "text" in prefix), prefixes[0])


def _last(module: Module) -> str:
    return last_part(module.name)
