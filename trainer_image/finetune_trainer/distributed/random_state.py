"""Save the random state of each process, and seed processes apart, so that no two draw the same dropout."""

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import set_seed

from finetune_trainer.models.device import has_gpu


def seed_process(seed: int, step: int, rank: int) -> None:
    """Seed this process at a step for which there is no saved state.

    That is the first step, or one that a run with another number of processes has saved.
    """
    set_seed((seed + 1_000_003 * step + rank) % 2**32)


def file_of(rank: int) -> str:
    """Return the name of the file of a checkpoint with the random state of the process of this rank."""
    return f"rng_state_{rank}.pth"


def load_random_state(directory: Path, rank: int) -> None:
    """Restore the state that a checkpoint has for the process of this rank."""
    restore_state(torch.load(directory / file_of(rank), weights_only=True))


def restore_state(state: dict[str, Any]) -> None:
    """Restore what ``current_state`` returned."""
    random.setstate(state["python"])
    numbers = state["numpy"]
    inner = numbers["state"] | {"key": numpy.array(numbers["state"]["key"], dtype=numpy.uint32)}
    numpy.random.set_state(numbers | {"state": inner})
    torch.set_rng_state(state["cpu"])
    if has_gpu():
        torch.cuda.set_rng_state(state["cuda"])


def count_saved_processes(directory: Path) -> int:
    """Count the processes whose random state a checkpoint holds."""
    return len(list(directory.glob("rng_state*.pth")))


def current_state() -> dict[str, Any]:
    """Return this process's state in types that torch.load reads with ``weights_only``."""
    numbers = numpy.random.get_state(legacy=False)
    assert isinstance(numbers, dict), "as asked for"  # noqa: S101
    inner = numbers["state"] | {"key": numbers["state"]["key"].tolist()}
    return {
        "python": random.getstate(),
        "numpy": numbers | {"state": inner},
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if has_gpu() else None,
    }
