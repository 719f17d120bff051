"""Tell which modules are linear layers, as PEFT's ``all-linear`` does: by kind, name or architecture."""

import re
from collections.abc import Container

LINEAR_KINDS = ("linear", "conv1d")
"""Kinds of module that PEFT adapts: ``nn.Linear``, and GPT-2's ``Conv1D``, which stores its weight transposed."""
CONV1D_MODEL_TYPES = ("gpt2", "openai-gpt")
"""Values of ``model_type`` whose linear layers are ``transformers.pytorch_utils.Conv1D``."""
SCORE_HEAD = "score"
"""transformers' name of the head of a decoder that scores texts."""
_NO_LINEAR_LAYER = re.compile(
    r"(^|\.)(embed\w*|\w+_embed|\w*embeddings?|wte|wpe|shared|lm_head|embed_out|score|classifier)$"
    r"|^(transformer\.)?w$|^head$"
)
"""Names of embeddings and output heads; ``w`` are the embeddings of CTRL, and ``head`` is the head of RWKV."""


def is_embedding_or_head(module: str) -> bool:
    """Return whether a module with a matrix is an embedding or the output head, by its name."""
    return bool(_NO_LINEAR_LAYER.search(module))


def is_router(module: str, tensors: Container[str]) -> bool:
    """Return whether a module with a matrix chooses among experts that lie beside it in one parameter.

    Args:
        module: Its full name.
        tensors: Names of all tensors of the loaded model.
    """
    block, _, last = module.rpartition(".")
    return last in ("gate", "router") and f"{block}.experts.down_proj" in tensors
