"""Which modules of a model get an adapter, and how many parameters it has: in closed form, from the names and shapes of the tensors."""

import re
from collections.abc import Iterable, Mapping

from finetune_artifacts.safetensors import Tensor

_NOT_LINEAR = re.compile(r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe|shared|lm_head|embed_out|score|classifier)$")
"""Matrices that are no linear layer for PEFT's all-linear: embeddings and the output head."""


def linear_modules(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Module name to the two sizes of its matrix, for each linear layer but the output head, in the model's order."""
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module != name and len(tensor.shape) == 2 and not _NOT_LINEAR.search(module):
            found[module] = (tensor.shape[0], tensor.shape[1])
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def matching(modules: Iterable[str], target: str) -> list[str]:
    """The modules that ``target`` names, as PEFT understands it: the whole name, or its end after a dot."""
    return [module for module in modules if module == target or module.endswith(f".{target}")]


def unknown(modules: Iterable[str], targets: Iterable[str]) -> list[str]:
    """The targets that name no module."""
    names = list(modules)
    return [target for target in targets if not matching(names, target)]


def suffixes(modules: Iterable[str]) -> list[str]:
    """The last parts of the modules' names, each once, in the model's order."""
    return list(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))


def lora_parameters(modules: Mapping[str, tuple[int, int]], targets: str | list[str], rank: int) -> int:
    """Parameters of a LoRA: ``rank * (in + out)`` for each adapted matrix (Hu et al. 2021, section 4.1)."""
    names = (
        list(modules)
        if isinstance(targets, str)
        else {name for target in targets for name in matching(modules, target)}
    )
    return sum(rank * sum(modules[name]) for name in names)


def total_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in all tensors; a tied output head is stored, and counted, once."""
    total = 0
    for tensor in tensors.values():
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
