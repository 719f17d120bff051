"""Tell which modules are linear layers, as PEFT's ``all-linear`` does: by kind, name or architecture."""

import re

LINEAR_KINDS = ("linear", "conv1d")
"""Kinds of module that PEFT adapts: ``nn.Linear``, and GPT-2's ``Conv1D``, which stores its weight transposed."""
CONV1D_MODEL_TYPES = ("gpt2", "openai-gpt")
"""Values of ``model_type`` whose linear layers are ``transformers.pytorch_utils.Conv1D``."""
SCORE_HEAD = "score"
"""transformers' name of the head of a decoder that scores texts."""
_NO_LINEAR_LAYER = re.compile(r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe|shared|lm_head|embed_out|score|classifier)$")


def is_embedding_or_head(module: str) -> bool:
    """Return whether a module with a matrix is an embedding or the output head, by its name."""
    return bool(_NO_LINEAR_LAYER.search(module))
