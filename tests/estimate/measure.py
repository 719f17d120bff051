"""Measure the bytes that a forward and a backward pass hold: each storage from its operation until it is freed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class MemoryUse:
    """Bytes beside the weights: ``held`` after the forward pass, for the backward pass; ``peak`` at any time."""

    held: int
    peak: int


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, but not those of the given tensors."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        """Begin with nothing alive but the given tensors, which do not count."""
        super().__init__()
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the storages that an operation of PyTorch creates."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def measure(
    model: Any, backbone: Callable[[torch.Tensor], torch.Tensor], *, batch: int, length: int, mixed: bool
) -> MemoryUse:
    """Run the model without its head once, as TRL does, and back from a gradient of its hidden states.

    The gradients of the weights exist before.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    counted_before = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    ids = torch.randint(0, 1000, (batch, length))
    with Storages(counted_before) as storages:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = backbone(ids)
        held_bytes = storages.now
        hidden.backward(torch.zeros_like(hidden))
    return MemoryUse(held_bytes, storages.peak)
