"""List the modules of a model that can get an adapter, and count parameters, from the tensors' shapes."""

import re
from collections.abc import Iterable, Mapping

from finetune_api.methods import LoraFields
from finetune_api.targets import of_module
from finetune_artifacts.safetensors import Tensor

_NOT_LINEAR = re.compile(r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe|shared|lm_head|embed_out|score|classifier)$")
"""Matrices that are no linear layer for PEFT's all-linear: embeddings and the output head."""


def list_linear_modules(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Map each linear layer but the output head to the two sizes of its matrix, in the model's order."""
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module != name and len(tensor.shape) == 2 and not _NOT_LINEAR.search(module):
            found[module] = (tensor.shape[0], tensor.shape[1])
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def list_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the names of all modules that have a weight, and of the modules that contain them."""
    found: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")[:-1]
        found |= {".".join(parts[:length]): None for length in range(len(parts), 0, -1)}
    return list(found)


def count_lora_parameters(modules: Mapping[str, tuple[int, int]], chosen: Iterable[str], block: LoraFields) -> int:
    """Count the parameters of a LoRA: ``rank * (in + out)`` for each matrix (Hu et al. 2021, section 4.1)."""
    return sum(of_module(block.rank_pattern, name, block.rank) * sum(modules[name]) for name in chosen)


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Count the numbers in all tensors; a tied output head is stored, and counted, once."""
    total = 0
    for tensor in tensors.values():
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
