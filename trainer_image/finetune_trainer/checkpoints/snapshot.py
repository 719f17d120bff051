"""Copy the state of a training into main memory, so that it is written to the disk while the training goes on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from finetune_trainer.checkpoints import exact_resume
from finetune_trainer.distributed import random_state
from finetune_trainer.models import device, memory

MEMORY_SHARE = 0.5
"""How much of the free main memory a copy may take."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after a step: all that a resumed run reads.

    ``weights`` are safetensors files by name, and ``objects`` what ``torch.save`` writes, by the name of the file.
    ``is_copy`` tells whether the training may go on before the snapshot is written.
    """

    step: int
    total_steps: int
    weights: exact_resume.TensorFiles
    objects: dict[str, Any]
    trainer_state: bytes
    is_copy: bool

    def write(self, directory: Path) -> None:
        """Write the files. Raises OSError."""
        exact_resume.write(self.weights, directory)
        for name, value in self.objects.items():
            torch.save(value, directory / name)
        (directory / "trainer_state.json").write_bytes(self.trainer_state)


def take_snapshot(
    model: Any, optimizer: Any, scheduler: Any, state: TrainerState, random_states: list[dict[str, Any]]
) -> Snapshot:
    """Return the state of the training: a copy, if it fits in ``MEMORY_SHARE`` of the free main memory.

    Args:
        model: The model.
        optimizer: Accelerate's wrapper of the optimizer, which has the scale of the loss in fp16.
        scheduler: The scheduler of the learning rate.
        state: The Trainer's state.
        random_states: The random state of each process, by rank.
    """
    objects = {"optimizer.pt": optimizer.state_dict(), "scheduler.pt": scheduler.state_dict()}
    if optimizer.scaler is not None:
        objects["scaler.pt"] = optimizer.scaler.state_dict()
    objects |= {random_state.file_of(rank): of_process for rank, of_process in enumerate(random_states)}
    weights = exact_resume.collect(model)
    is_copy = fits_in_memory((weights, objects))
    if is_copy:
        weights, objects = copy_to_host(weights), copy_to_host(objects)
        if device.has_gpu():
            torch.cuda.synchronize()  # the copies into pinned memory are asynchronous
    return Snapshot(
        step=state.global_step,
        total_steps=state.max_steps,
        weights=weights,
        objects=objects,
        trainer_state=json.dumps(asdict(state), indent=2, sort_keys=True).encode(),
        is_copy=is_copy,
    )


def fits_in_memory(value: Any) -> bool:
    """Return whether a copy takes no more than ``MEMORY_SHARE`` of the main memory that is free."""
    free = memory.free_bytes()
    return free is not None and sum(host_bytes(tensor) for tensor in tensors_of(value)) <= MEMORY_SHARE * free


def host_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that a copy takes: PyTorch rounds a block of pinned memory up to a power of two."""
    size = tensor.numel() * tensor.element_size()
    return 1 << (size - 1).bit_length() if tensor.is_cuda and size else size


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(item)


def copy_to_host(value: Any) -> Any:
    """Return nested dictionaries, lists and tuples with copies of their tensors in main memory."""
    if isinstance(value, torch.Tensor):
        return _new_host_tensor(value).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_host(item) for item in value)
    return value


def _new_host_tensor(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:
        try:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # the system pins no more memory
            pass
    return torch.empty(tensor.shape, dtype=tensor.dtype)
