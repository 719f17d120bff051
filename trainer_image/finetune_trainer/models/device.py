"""Find the device and its precision, free its memory, and compute elsewhere if it is too small."""

import gc
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from finetune_api.finetunejob import Training
from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Result = TypeVar("Result")
Placement = Literal["gpu", "streamed", "cpu"]
"""Where a model computes: on a GPU that holds it, on a GPU through which its layers are streamed, or on the CPU."""


def has_gpu() -> bool:
    """Return whether this process has an NVIDIA GPU."""
    return torch.cuda.is_available()


def gpu_bytes() -> int:
    """Return the size of the GPU's memory, in bytes."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def training_bytes() -> int | None:
    """Return how many bytes of the GPU's memory a training may fill; None without a GPU."""
    return gpu_bytes() if has_gpu() else None


def has_flash_attention() -> bool:
    """Return whether the GPU has torch's attention kernels for variable lengths: Ampere and later have."""
    return has_gpu() and torch.cuda.get_device_capability() >= (8, 0)


def count_full() -> int:
    """Return how often an allocation has failed so far because the GPU was full."""
    return int(torch.cuda.memory_stats().get("num_ooms", 0)) if has_gpu() else 0


def device_name() -> str:
    """Return the name of the device, for messages."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU ({torch.get_num_threads()} threads)"


def choose_precision(training: Training) -> str:
    """Return the precision of the training: ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        Failure: The job asks for fp16 without a GPU, or for bf16 on a GPU that has none.
    """
    has_bf16 = has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
    if training.precision == "auto":
        return "bf16" if has_bf16 else "fp16" if has_gpu() else "fp32"
    if training.precision == "fp16" and not has_gpu():
        raise Failure(Reason.SPEC_INVALID, "fp16 needs a GPU: choose auto, bf16 or fp32", "spec.training.precision")
    if training.precision == "bf16" and has_gpu() and not has_bf16:
        raise Failure(
            Reason.SPEC_INVALID,
            f"{device_name()} has no bf16: choose auto or fp16, or a GPU since Ampere",
            "spec.training.precision",
        )
    return training.precision


def run_where_it_fits(work: Callable[[Placement], Result], placements: Sequence[Placement]) -> Result:
    """Call ``work`` with each placement of a model in turn, until one fits into memory.

    This is for the steps after the training, where another attempt with a smaller batch would not help: a base that is
    quantized during the training is larger when it is served.

    Raises:
        torch.OutOfMemoryError: The last placement does not fit either.
    """
    for placement, following in itertools.pairwise(placements):
        try:
            return work(placement)
        except torch.OutOfMemoryError:
            log.warning("the base in the serving dtype does not fit into memory (%s): trying %s", placement, following)
        free_memory()
    return work(placements[-1])


def free_memory() -> None:
    """Free memory to which nothing refers any more."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
