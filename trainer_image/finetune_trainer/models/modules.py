"""List the modules of a model that can get an adapter, and count parameters, from the tensors' shapes."""

from collections.abc import Iterable, Mapping

from finetune_api.linear import is_embedding_or_head, is_router
from finetune_api.methods import LoraFields
from finetune_artifacts.safetensors import Tensor

FLOATING_POINT = ("BF16", "F16", "F32", "F64")
"""Types of safetensors in which weights are not quantised."""


def list_linear_modules(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return the two sizes of the matrix of each linear layer except the output head, in the model's order.

    A router beside a parameter that holds all experts is no linear layer in transformers.
    """
    shapes = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        is_matrix = module != name and len(tensor.shape) == 2
        if is_matrix and not is_embedding_or_head(module) and not is_router(module, tensors):
            shapes[module] = (tensor.shape[0], tensor.shape[1])
    return dict(sorted(shapes.items(), key=lambda item: _natural_sort_key(item[0])))


def list_modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the names of all modules that have a weight, and of the modules that contain them."""
    names: dict[str, None] = {}
    for name in tensors:
        parts = name.split(".")[:-1]
        names |= {".".join(parts[:length]): None for length in range(len(parts), 0, -1)}
    return list(names)


def list_weighted(tensors: Iterable[str]) -> list[str]:
    """List the names of all modules that have a weight of their own."""
    return [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]


def count_lora_parameters(modules: Mapping[str, tuple[int, int]], chosen: Iterable[str], block: LoraFields) -> int:
    """Count the parameters of a LoRA: ``rank * (in + out)`` for each matrix (Hu et al. 2021, section 4.1)."""
    return sum(block.rank_of(name) * sum(modules[name]) for name in chosen)


def find_quantised(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a weight that is stored as whole numbers or in 8 bits or fewer; None if there is none."""
    return next(
        (
            name
            for name, tensor in tensors.items()
            if name.endswith((".weight", ".qweight", ".weight_packed")) and tensor.dtype not in FLOATING_POINT
        ),
        None,
    )


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Count the numbers in all tensors; a tied output head is stored, and counted, once."""
    total = 0
    for tensor in tensors.values():
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
    return total


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
