"""The random numbers of each process: kept in checkpoints, and drawn apart where several train together, so that no two drop out the same."""

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import set_seed

from finetune_trainer.distributed import process_group
from finetune_trainer.models.device import has_gpu


def seed_process(seed: int, step: int, rank: int) -> None:
    """Where there is nothing to go on from: at the first step, and at one that another number of processes has come to."""
    set_seed((seed + 1_000_003 * step + rank) % 2**32)


def save_random_state(directory: Path) -> None:
    """Write the state of all processes, from the one of rank 0."""
    for rank, state in enumerate(process_group.gather(_state())):
        torch.save(state, directory / f"rng_state_{rank}.pth")


def load_random_state(directory: Path, rank: int) -> None:
    """Read what ``save`` wrote for a process."""
    state = torch.load(directory / f"rng_state_{rank}.pth", weights_only=True)
    random.setstate(state["python"])
    numbers = state["numpy"]
    inner = numbers["state"] | {"key": numpy.array(numbers["state"]["key"], dtype=numpy.uint32)}
    numpy.random.set_state(numbers | {"state": inner})
    torch.set_rng_state(state["cpu"])
    if has_gpu():
        torch.cuda.set_rng_state(state["cuda"])


def count_saved_processes(directory: Path) -> int:
    """How many processes a checkpoint has the random numbers of."""
    return len(list(directory.glob("rng_state*.pth")))


def _state() -> dict[str, Any]:
    """Of this process, in types that can be read back without running code."""
    numbers = numpy.random.get_state(legacy=False)
    assert isinstance(numbers, dict), "as asked for"  # noqa: S101
    inner = numbers["state"] | {"key": numbers["state"]["key"].tolist()}
    return {
        "python": random.getstate(),
        "numpy": numbers | {"state": inner},
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if has_gpu() else None,
    }
