"""Find how many positions a model has, whatever its config.json calls them, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_artifacts.safetensors import Tensor
from finetune_trainer.models.shapes import OTHER_TOWERS

KEYS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length",
    "n_ctx",
)  # fmt: skip
"""Names that architectures give to the number of positions."""
ROPE_KEYS = ("rope_scaling", "rope_parameters")
LEARNED = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")
"""Modules with a learned vector for each position."""
FIXED_TABLES = ("codegen", "ctrl", "gptj", "mpt")
"""Types of models that compute a table for the configured positions once, and have no entry for another one."""
UNUSED_VECTORS = {"opt": 2, "biogpt": 2}
"""How many vectors before the first position a type of model has (transformers' OPTLearnedPositionalEmbedding)."""


@dataclass(frozen=True)
class Positions:
    """The number of positions of a model; ``fixed``: it has a table of them, so a longer text is impossible."""

    count: int
    fixed: bool = False


def find_positions(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Positions | None:
    """Return a model's positions; None if it has no limit, as with ALiBi, or names none.

    Args:
        config: The config.json, or the part of it about the language model.
        tensors: The tensors of the weights.
    """
    for name, tensor in tensors.items():
        is_learned = name.removesuffix(".weight").rsplit(".", 1)[-1] in LEARNED and len(tensor.shape) == 2
        if is_learned and not OTHER_TOWERS.search(name):
            return Positions(tensor.shape[0] - UNUSED_VECTORS.get(str(config.get("model_type")), 0), fixed=True)
    if config.get("alibi") or config.get("model_type") == "bloom":
        return None
    configured = next((config[key] for key in KEYS if isinstance(config.get(key), int)), None)
    if configured and config.get("model_type") in FIXED_TABLES:
        return Positions(configured, fixed=True)
    scaled = [_scale(config[key], configured) for key in ROPE_KEYS if isinstance(config.get(key), dict)]
    count = max([configured or 0, *scaled])
    return Positions(count) if count else None


def _scale(rope: dict[str, Any], configured: int | None) -> int:
    """Return the positions to which the rotary embedding is stretched; 0 if it is not."""
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]  # some have one for each kind of layer
    factors = [part.get("factor") for part in parts]
    original = next((part.get("original_max_position_embeddings") for part in parts), None)
    base = original if isinstance(original, int) else configured
    factor = max((factor for factor in factors if isinstance(factor, int | float)), default=0)
    return int(factor * base) if base else 0
