"""Which modules of a model can get an adapter, and how many parameters a LoRA has: from the names and shapes of the tensors."""

from collections.abc import Iterable, Mapping

from finetune_api.linear import is_embedding_or_head
from finetune_api.methods import LoraFields
from finetune_artifacts.safetensors import Tensor


def linear_modules(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Module name to the two sizes of its matrix, for each linear layer but the output head, in the model's order."""
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module != name and len(tensor.shape) == 2 and not is_embedding_or_head(module):
            found[module] = (tensor.shape[0], tensor.shape[1])
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def all_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of all modules that have a weight, and of those that hold them."""
    found: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")[:-1]
        found |= {".".join(parts[:length]): None for length in range(len(parts), 0, -1)}
    return list(found)


def lora_parameters(modules: Mapping[str, tuple[int, int]], chosen: Iterable[str], block: LoraFields) -> int:
    """Parameters of a LoRA: ``rank * (in + out)`` for each adapted matrix (Hu et al. 2021, section 4.1)."""
    return sum(block.rank_of(name) * sum(modules[name]) for name in chosen)


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
